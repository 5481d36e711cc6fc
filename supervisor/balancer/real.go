package balancer

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/health"
	"github.com/baton-mesh/baton/supervisor/balancer/neighbour"
)

// real is a node behind the VIPs. The goroutine of Run owns it.
type real struct {
	conf    config.Real
	index   uint32 // in the kernel's table, never 0
	drained bool
	added   bool // by a reload: it begins with the first step of a slow start

	health  health.State
	problem string             // what the last check has found wrong
	cancel  context.CancelFunc // ends its checks, nil without

	hop    neighbour.Hop
	hasHop bool
}

func (r *real) addr() netip.Addr { return r.conf.Addr() }

// up reports whether packets can be sent to it.
func (r *real) up() bool { return r.health.Known && r.health.Up && r.hasHop && r.hop.Usable() }

// share is its weight in the ring at this time, in tenths of the configured one,
// and how long it stays so: 0 means until something happens.
func (r *real) share(slowStart time.Duration, now time.Time) (weight uint32, next time.Duration) {
	if !r.up() || r.drained {
		return 0, 0
	}
	step := health.Steps
	if !r.health.Since.IsZero() { // one that was up before anybody looked starts at full weight
		step, next = health.Step(slowStart, now.Sub(r.health.Since))
	}
	return uint32(*r.conf.Weight * step), next
}

// entry is the real as the program sees it.
func (r *real) entry() Real {
	return Real{
		Addr: r.addr(), MAC: r.hop.MAC, Ifindex: r.hop.Ifindex, Local: r.hop.Local,
		Down: !r.up(), Drained: r.drained,
	}
}

// State is where a real stands, for people.
type State string

// The states of a real.
const (
	Unknown     State = "unknown"     // not checked yet
	Up          State = "up"          // gets new flows
	Starting    State = "starting"    // gets some, slow_start
	Drained     State = "drained"     // gets no new flows, keeps those it has
	Down        State = "down"        // failed its checks: gets nothing
	Unreachable State = "unreachable" // no way to send it a frame
)

func (r *real) state(slowStart time.Duration, now time.Time) State {
	_, next := r.share(slowStart, now)
	switch {
	case !r.health.Known:
		return Unknown
	case !r.health.Up:
		return Down
	case !r.up():
		return Unreachable
	case r.drained:
		return Drained
	case next > 0:
		return Starting
	}
	return Up
}

// indexes allots places in the kernel's table of reals. A place that was given
// back is used again as late as possible, which keeps counters of two reals apart
// for longer.
type indexes struct {
	taken map[uint32]bool
	last  uint32
	limit uint32 // the first number that is no place
}

func newIndexes(limit uint32) *indexes { return &indexes{taken: map[uint32]bool{}, limit: limit} }

// take returns a free place, 1 to limit-1, or 0 if there is none.
func (x *indexes) take() uint32 {
	for range x.limit {
		if x.last++; x.last >= x.limit {
			x.last = 1
		}
		if !x.taken[x.last] {
			x.taken[x.last] = true
			return x.last
		}
	}
	return 0
}

// keep notes that a place is in use already.
func (x *indexes) keep(index uint32) {
	x.taken[index] = true
	x.last = max(x.last, index)
}

func (x *indexes) free(index uint32) { delete(x.taken, index) }

// byName is the reals in the order of their names.
func (b *Balancer) byName() []*real {
	list := make([]*real, 0, len(b.reals))
	for _, r := range b.reals {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, c *real) int { return cmp.Compare(a.conf.Name, c.conf.Name) })
	return list
}
