package balancer

import (
	"fmt"
	"net/netip"
)

// soakFlow is a connection through the balancer.
type soakFlow struct {
	vip   VIP
	owner netip.Addr
	id    uint32 // names the owner; 0: the connection table remembers the place
	place uint32
	epoch int // how often the place had been forgotten when it was remembered
}

// flowsArrive looks where a packet of each flow would go, and begins new flows.
func (s *soak) flowsArrive() error {
	k := s.w.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	kept := s.flows[:0]
	for _, f := range s.flows {
		if _, ok := k.vips[f.vip]; !ok {
			continue // its VIP has gone
		}
		place, remembered := f.place, f.epoch == k.forgot[f.place]
		if f.id != 0 {
			place, remembered = k.ids[f.id], true
		}
		r, there := k.reals[place]
		arrives := remembered && there && !r.Down
		switch {
		case arrives && r.Addr == f.owner:
			kept = append(kept, f)
		case arrives && f.id == 0:
			return fmt.Errorf("a flow of %v, remembered as place %d, is sent to %v", f.owner, f.place, r.Addr)
		case s.m.serves(f.owner) && (f.id != 0 && s.has(f) || f.id == 0 && remembered && place == s.placeOf(f.owner)):
			return fmt.Errorf("%v serves, and its flow %+v does not arrive: %+v, %v", f.owner, f, r, there)
		default:
			s.lost++
		}
	}
	s.flows = kept
	for vip, entry := range k.vips {
		if len(s.flows) > 300 {
			break
		}
		slot := s.rng.IntN(s.w.size)
		place := k.rings[entry.Ring][slot]
		if place == 0 {
			continue
		}
		f := soakFlow{vip: vip, owner: k.reals[place].Addr, place: place, epoch: k.forgot[place]}
		if s.rng.IntN(2) == 0 {
			f.id = s.idOf(f.owner)
		}
		s.flows = append(s.flows, f)
		s.begun++
	}
	return nil
}

func (s *soak) idOf(addr netip.Addr) uint32 {
	for _, c := range s.m.conf.Reals {
		if c.Addr() == addr {
			return c.ServerID
		}
	}
	return 0
}

// has reports whether the flow's id still is its owner's: an operator may give it another.
func (s *soak) has(f soakFlow) bool { return s.idOf(f.owner) == f.id }

// placeOf is where the kernel has a real. With its lock held.
func (s *soak) placeOf(addr netip.Addr) uint32 {
	for place, r := range s.w.kernel.reals {
		if r.Addr == addr {
			return place
		}
	}
	return 0
}
