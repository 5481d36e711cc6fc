package balancer

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/health"
	"github.com/baton-mesh/baton/supervisor/balancer/neighbour"
)

// Reloads is what became of attempts to read the configuration again.
type Reloads struct {
	Succeeded uint64    `json:"succeeded"`
	Failed    uint64    `json:"failed"`
	Last      time.Time `json:"last,omitzero"`
	// Problem is why the last one failed. Empty where it did not.
	Problem string `json:"problem,omitempty"`
}

// Reloaded is what one reload has done.
type Reloaded struct {
	Reals        int     `json:"reals"`
	VIPs         int     `json:"vips"`
	Milliseconds float64 `json:"milliseconds"`
}

// Reload reads the configuration again and puts what has changed in force. A
// configuration with a mistake changes nothing. What the kernel refuses is tried
// again until it takes it, and returned as an error now.
func (b *Balancer) Reload() (Reloaded, error) {
	if b.load == nil {
		return Reloaded{}, fmt.Errorf("%w: there is no file to read again", ErrRefused)
	}
	began := time.Now()
	conf, err := b.load()
	var done Reloaded
	ran := b.post(func() {
		if err == nil {
			err = b.configure(conf)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
			b.reloads.Failed++
		} else {
			err = b.flush()
			b.reloads.Succeeded++
		}
		b.reloads.Last, b.reloads.Problem = time.Now(), ""
		if err != nil {
			b.reloads.Problem = err.Error()
		}
		done = Reloaded{len(b.reals), len(b.vips), float64(time.Since(began)) / 1e6}
	})
	if !ran {
		return done, fmt.Errorf("%w: the balancer has ended", ErrRefused)
	}
	return done, err
}

// configure puts a configuration in force, all of it or nothing. The tables follow
// with the next apply.
func (b *Balancer) configure(conf *config.Balancer) error {
	if b.conf != nil && (conf.XDPMode != b.conf.XDPMode || conf.Forwarding != b.conf.Forwarding) {
		return errors.New("xdp_mode and forwarding change with a restart only: the program would be away for a moment")
	}
	reals, err := b.realsOf(conf)
	if err != nil {
		return err
	}
	for addr, r := range b.reals {
		if _, stays := reals[addr]; !stays && r.cancel != nil {
			r.cancel()
		}
	}
	before := b.reals
	old := b.conf
	b.conf, b.reals, b.dirty = conf, reals, true
	b.order = b.order[:0]
	for _, c := range byAddress(conf.Reals) {
		b.order = append(b.order, reals[c.Addr()])
	}
	b.configureVIPs(conf)
	b.configureInterfaces(conf.Interfaces)
	b.hops.Follow(slices.Collect(maps.Keys(reals)))
	if b.ctx == nil { // Run begins with the checks, and to follow
		b.hops.Known = map[netip.Addr]neighbour.Hop{}
		for addr, r := range reals {
			if r.hasHop {
				b.hops.Known[addr] = r.hop
			}
		}
		return nil
	}
	for addr, r := range reals {
		if _, had := before[addr]; !had || conf.Health != old.Health {
			b.startChecks(r)
		}
	}
	return nil
}

// realsOf is the reals of a configuration: those that are there already under
// their address, with their new settings, and new ones.
func (b *Balancer) realsOf(conf *config.Balancer) (map[netip.Addr]*real, error) {
	held := map[netip.Addr]uint32{}
	if b.conf == nil { // at the start: what a process before has left
		for index, r := range b.have.Reals {
			held[r.Addr] = index
		}
	}
	reals := map[netip.Addr]*real{}
	var taken []uint32
	for _, c := range conf.Reals {
		addr := c.Addr()
		r := b.reals[addr]
		if r == nil {
			r = &real{added: b.ctx != nil}
			if index, ok := held[addr]; ok {
				r.adopt(index, b.have.Reals[index])
			} else if r.index = b.places.take(); r.index == 0 {
				for _, index := range taken {
					b.places.free(index)
				}
				return nil, fmt.Errorf("there is no place for real %s: %d are in use, some by reals that have just gone", c.Name, maxReals-1)
			} else {
				taken = append(taken, r.index)
			}
		}
		reals[addr] = r
	}
	for _, c := range conf.Reals {
		reals[c.Addr()].conf = c
	}
	return reals, nil
}

// adopt goes on from what a process before has known of a real.
func (r *real) adopt(index uint32, known Real) {
	r.index, r.drained = index, known.Drained
	r.health = health.State{Known: true, Up: !known.Down}
	if known.Local || known.Ifindex != 0 && known.MAC != [6]byte{} {
		r.hop, r.hasHop = neighbour.Hop{Ifindex: known.Ifindex, MAC: known.MAC, Local: known.Local}, true
	}
}
