// Package balancer is the control plane of the XDP program in front of nodes: it
// decides what the program's tables hold, and where the program hangs.
//
// What always holds:
//
//   - The program works by its tables alone. While no control plane runs, packets
//     are forwarded as they were before; the next one goes on from what it finds.
//   - A packet never finds a name without what it names ([Balancer.apply]).
//   - A real that gets no new flows, by drain or weight, keeps those it has. One
//     that is down gets nothing.
//   - A real keeps its place in the kernel's table while it is in the configuration
//     under its address.
//
// One goroutine, that of [Balancer.Run], owns the state; everything else sends it
// functions.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/health"
	"github.com/baton-mesh/baton/supervisor/balancer/maglev"
	"github.com/baton-mesh/baton/supervisor/balancer/neighbour"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

// ErrRefused is a request that nothing was done about.
var ErrRefused = errors.New("refused")

// Options are what a balancer is made of.
type Options struct {
	// Config is the first configuration. Required.
	Config *config.Balancer
	// Load reads the configuration anew, for [Balancer.Reload]. Without it there is
	// no reload.
	Load func() (*config.Balancer, error)
	// Kernel holds the tables. Required.
	Kernel Kernel
	// Hang attaches the program to the interfaces. Required.
	Hang Hanger
	// IDs are the keys that the program reads connection IDs by, for the status. Nil:
	// there are none, or they are somebody else's to tell.
	IDs *idkeys.Keys
	// Log defaults to none.
	Log *slog.Logger
	// Serving is called once, when the tables are filled and the program hangs on
	// every interface that is there.
	Serving func()
	// RingSize is the number of slots, a prime. Defaults to [maglev.Small].
	RingSize int

	outside outside
}

// outside is what tests replace. Each runs until the context ends.
type outside struct {
	follow func(context.Context, *Balancer) error                   // how neighbours are followed
	watch  func(context.Context, *Balancer)                         // how it is seen that interfaces come and go
	check  func(context.Context, health.Target, func(result error)) // how a real is checked
}

// maxReals is how many places the kernel's table of reals has, the first unused.
const maxReals = 4096

// Balancer is the control plane. New makes one, Run runs it.
type Balancer struct {
	kernel   Kernel
	hang     Hanger
	load     func() (*config.Balancer, error)
	log      *slog.Logger
	ids      *idkeys.Keys
	serving  func()
	ringSize int
	outside  outside
	hops     *neighbour.Follower

	requests chan func()    // run by Run, one at a time
	ended    chan struct{}  // closed when Run has returned
	checks   sync.WaitGroup // goroutines that check

	// Owned by the goroutine of Run.
	ctx        context.Context
	conf       *config.Balancer
	reals      map[netip.Addr]*real
	places     *indexes
	order      []*real // by address: what [members] are of
	vips       map[VIP]VIPEntry
	ringReals  map[uint32]members // the reals of each ring
	have       Tables             // what the kernel's tables hold
	dirty      bool               // whether they may have to change
	look       bool               // whether interfaces may have changed
	settled    bool               // whether every real was heard of, or the wait for it is over
	interfaces map[string]*iface
	reloads    Reloads
}

// New takes over what the kernel's tables hold. Nothing in the kernel changes
// before Run.
func New(o Options) (*Balancer, error) {
	b := &Balancer{
		kernel: o.Kernel, hang: o.Hang, load: o.Load, log: o.Log, ids: o.IDs, serving: o.Serving, ringSize: o.RingSize,
		outside:  o.outside,
		requests: make(chan func()), ended: make(chan struct{}),
		reals: map[netip.Addr]*real{}, places: newIndexes(maxReals),
		vips: map[VIP]VIPEntry{}, ringReals: map[uint32]members{}, interfaces: map[string]*iface{},
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.ringSize == 0 {
		b.ringSize = maglev.Small
	}
	if b.outside.follow == nil {
		b.outside = outside{
			follow: func(ctx context.Context, b *Balancer) error { return b.hops.Run(ctx) },
			watch:  func(ctx context.Context, b *Balancer) { b.watchInterfaces(ctx) },
			check:  func(ctx context.Context, t health.Target, report func(error)) { t.Watch(ctx, report) },
		}
	}
	b.hops = &neighbour.Follower{Log: b.log, Changed: func(addr netip.Addr, hop neighbour.Hop) {
		b.post(func() { b.hopChanged(addr, hop) })
	}}
	held, err := b.kernel.Held()
	if err != nil {
		return nil, fmt.Errorf("read the balancer's tables: %w", err)
	}
	b.have = held
	for index := range held.Reals {
		b.places.keep(index)
	}
	return b, errors.Join(b.configure(o.Config), b.adoptInterfaces())
}

// retryAfter is how long after a failure the kernel is written again.
const retryAfter = time.Second

// Run works until ctx ends. The kernel then goes on forwarding by the tables as
// they are.
func (b *Balancer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer func() {
		cancel()
		close(b.ended)
		helpers.Wait()
		b.checks.Wait()
	}()
	b.ctx = ctx
	helpers.Go(func() {
		if err := b.outside.follow(ctx, b); err != nil {
			b.log.Error("neighbours are not followed", "error", err)
		}
	})
	helpers.Go(func() { b.outside.watch(ctx, b) })
	for _, r := range b.reals {
		b.startChecks(r)
	}
	return b.loop(ctx)
}

func (b *Balancer) loop(ctx context.Context) error {
	settle := time.After(b.conf.Health.Timeout + settleTime)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failing string
	for {
		if b.settled = b.settled || b.heardOfAll(); b.settled && b.dirty {
			want, until := b.want(time.Now())
			b.dirty = false
			if err := b.apply(want); err != nil {
				if text := err.Error(); text != failing {
					b.log.Error("write the balancer's tables", "error", err)
					failing = text
				}
				until = retryAfter
			} else {
				failing = ""
			}
			timer.Stop()
			if until > 0 {
				timer.Reset(until)
			}
		}
		if b.settled && b.look {
			if err := b.attach(); err != nil && b.serving != nil {
				return err // at the start: somebody waits for it
			}
			b.look = false
			if b.serving != nil {
				b.serving()
				b.serving = nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case f := <-b.requests:
			f()
			b.more()
		case <-timer.C:
			b.dirty = true
		case <-settle:
			b.settled, b.dirty = true, true
		}
	}
}

// settleTime is how much longer than a check a start waits for what it has not
// heard of. Until then the tables stay as they are.
const settleTime = 2 * time.Second

// heardOfAll reports whether of every real it is known how to reach it and whether
// it serves.
func (b *Balancer) heardOfAll() bool {
	for _, r := range b.reals {
		asked := r.hasHop && !r.hop.Usable() && r.hop.Ifindex != 0 // and has not answered yet
		if !r.health.Known || !r.hasHop || asked {
			return false
		}
	}
	return true
}

// more runs what else is waiting, so that a burst is one change of the tables.
func (b *Balancer) more() {
	for range maxReals {
		select {
		case f := <-b.requests:
			f()
		default:
			return
		}
	}
}

// post has Run call f, and returns when it has, or when there is no Run any more.
func (b *Balancer) post(f func()) bool {
	done := make(chan struct{})
	select {
	case b.requests <- func() { f(); close(done) }:
		<-done
		return true
	case <-b.ended:
		return false
	}
}

func (b *Balancer) hopChanged(addr netip.Addr, hop neighbour.Hop) {
	r, ok := b.reals[addr]
	if !ok || r.hasHop && r.hop == hop {
		return
	}
	if r.hasHop && r.hop.Usable() != hop.Usable() || !r.hasHop && !hop.Usable() {
		b.log.Info("way to a real", "real", r.conf.Name, "usable", hop.Usable(), "problem", hop.Problem)
	}
	r.hop, r.hasHop, b.dirty = hop, true, true
}

// startChecks begins to check a real, or takes it for healthy where nothing is checked.
func (b *Balancer) startChecks(r *real) {
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
	h := b.conf.Health
	if h.TCPPort == 0 {
		r.health, r.problem, b.dirty = health.State{Known: true, Up: true}, "", true
		return
	}
	ctx, cancel := context.WithCancel(b.ctx)
	r.cancel = cancel
	target := health.Target{
		Addr: netip.AddrPortFrom(r.addr(), uint16(h.TCPPort)), HTTPPath: h.HTTPPath,
		Interval: h.Interval, Timeout: h.Timeout,
	}
	b.checks.Go(func() {
		b.outside.check(ctx, target, func(err error) {
			b.post(func() {
				if ctx.Err() == nil { // not of a real that is gone, or is checked otherwise by now
					b.checked(r, err)
				}
			})
		})
	})
}

// checked takes what one check has found.
func (b *Balancer) checked(r *real, err error) {
	r.problem = ""
	if err != nil {
		r.problem = err.Error()
	}
	first := !r.health.Known
	if !r.health.Heard(err == nil, time.Now(), b.conf.Health.Rise, b.conf.Health.Fall) {
		return
	}
	if first && !r.added {
		r.health.Since = time.Time{} // it has been what it is for longer than we know
	}
	b.dirty = true
	b.log.Info("health of a real", "real", r.conf.Name, "up", r.health.Up, "problem", r.problem)
}

// Drain takes a real's new flows away, or with undo gives them back. Flows that it
// has stay with it.
func (b *Balancer) Drain(name string, undo bool) (RealStatus, error) {
	var status RealStatus
	err := ErrRefused
	ran := b.post(func() {
		for _, r := range b.reals {
			if r.conf.Name == name {
				r.drained, b.dirty = !undo, true
				err = b.flush()
				status = b.realStatus(r, time.Now())
				return
			}
		}
		err = fmt.Errorf("%w: no real is named %q", ErrRefused, name)
	})
	if !ran {
		err = fmt.Errorf("%w: the balancer has ended", ErrRefused)
	}
	return status, err
}

// flush writes the tables now, for a caller who waits for it.
func (b *Balancer) flush() error {
	if !b.settled {
		return nil // the loop does when it can
	}
	want, _ := b.want(time.Now())
	return b.apply(want) // still dirty: the loop sets the timer, and tries again what failed
}

// Tables is what the kernel was told last, for tests and status.
func (b *Balancer) Tables() Tables {
	t := newTables()
	b.post(func() {
		t = Tables{maps.Clone(b.have.Reals), maps.Clone(b.have.ServerIDs), maps.Clone(b.have.VIPs), maps.Clone(b.have.Rings)}
	})
	return t
}
