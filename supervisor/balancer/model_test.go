package balancer

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/maglev"
)

// modelReal is what the model believes of one real.
type modelReal struct {
	drained, known, up bool
	against            int
	since              time.Time // zero: up for longer than the balancer runs
	added              bool
}

// model says what the tables have to hold, from the operations alone. It shares
// the filling of rings with what it judges, and nothing else.
type model struct {
	w     *world
	conf  *config.Balancer // in force
	reals map[netip.Addr]*modelReal
}

// reload takes a new configuration in force.
func (m *model) reload(conf *config.Balancer, running bool) {
	before := m.reals
	m.conf, m.reals = conf, map[netip.Addr]*modelReal{}
	for _, c := range conf.Reals {
		if r := before[c.Addr()]; r != nil {
			m.reals[c.Addr()] = r
		} else {
			m.reals[c.Addr()] = &modelReal{added: running}
		}
	}
}

// restart is another process: what it finds in the tables is all that it knows.
func (m *model) restart() {
	for addr, r := range m.reals {
		if r.known {
			*r = modelReal{drained: r.drained, known: true, up: r.up && !m.w.lost[addr]}
		}
	}
}

// check is one check of every real.
func (m *model) check() {
	for addr, r := range m.reals {
		passed := !m.w.dead[addr]
		switch {
		case !r.known:
			r.known, r.up = true, passed
			if r.added {
				r.since = time.Now()
			}
		case passed == r.up:
			r.against = 0
		default:
			r.against++
			if !passed && r.against == m.conf.Health.Fall || passed && r.against == m.conf.Health.Rise {
				r.up, r.against, r.since = passed, 0, time.Now()
			}
		}
	}
}

// serves reports whether a real that has packets gets them.
func (m *model) serves(addr netip.Addr) bool {
	r := m.reals[addr]
	return r != nil && r.known && r.up && !m.w.lost[addr]
}

// weight is the real's part of new flows.
func (m *model) weight(c config.Real) uint32 {
	r := m.reals[c.Addr()]
	if !m.serves(c.Addr()) || r.drained {
		return 0
	}
	tenths := 10
	if slow := m.conf.Health.SlowStart; slow > 0 && !r.since.IsZero() {
		tenths = min(10, 1+int(10*time.Since(r.since)/slow))
	}
	return uint32(*c.Weight * tenths)
}

// disagrees compares the kernel with the model.
func (m *model) disagrees() error {
	k := m.w.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.wrong != nil {
		return k.wrong
	}
	places := map[netip.Addr]uint32{}
	for index, r := range k.reals {
		if _, twice := places[r.Addr]; twice || index == 0 {
			return fmt.Errorf("%v has the places %d and %d", r.Addr, index, places[r.Addr])
		}
		places[r.Addr] = index
	}
	if len(places) != len(m.conf.Reals) {
		return fmt.Errorf("%d reals in the kernel, want %d", len(places), len(m.conf.Reals))
	}
	ids := map[uint32]uint32{}
	weights := map[string]maglev.Backend{}
	var all []string
	for _, c := range m.conf.Reals {
		index, ok := places[c.Addr()]
		if !ok {
			return fmt.Errorf("%v is not in the kernel", c.Addr())
		}
		if c.ServerID != 0 {
			ids[c.ServerID] = index
		}
		if r := k.reals[index]; r.Down == m.serves(c.Addr()) || r.Drained != m.reals[c.Addr()].drained {
			return fmt.Errorf("%s is %+v, the model says serving %v, drained %v", c.Name, r, m.serves(c.Addr()), m.reals[c.Addr()].drained)
		}
		weights[c.Name] = maglev.Backend{Key: c.Addr().String(), Value: index, Weight: m.weight(c)}
		all = append(all, c.Name)
	}
	if !maps.Equal(k.ids, ids) {
		return fmt.Errorf("server_ids %v, want %v", k.ids, ids)
	}
	rings := map[uint32]bool{}
	vips := 0
	for _, v := range m.conf.VIPs {
		for _, p := range v.Protocols {
			vips++
			entry, ok := k.vips[VIP{Addr: v.Addr(), Port: uint16(v.Port), UDP: p == config.UDP}]
			if !ok || entry.QUIC != (v.QUIC && p == config.UDP) {
				return fmt.Errorf("VIP %+v of %s is %+v, %v", v, p, entry, ok)
			}
			names := v.Reals
			if len(names) == 0 {
				names = all
			}
			backends := make([]maglev.Backend, len(names))
			for i, name := range names {
				backends[i] = weights[name]
			}
			want := make([]uint32, m.w.size)
			maglev.Fill(want, backends)
			if !slices.Equal(k.rings[entry.Ring], want) {
				return fmt.Errorf("ring %d of VIP %+v differs from %v", entry.Ring, v, backends)
			}
			rings[entry.Ring] = true
		}
	}
	if len(k.vips) != vips || len(k.rings) != len(rings) {
		return fmt.Errorf("%d VIPs and %d rings in the kernel, want %d and %d", len(k.vips), len(k.rings), vips, len(rings))
	}
	return nil
}
