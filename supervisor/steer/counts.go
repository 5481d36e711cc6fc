package steer

import (
	"fmt"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// Describe tells of the listeners, in the order in which they came, and of slots.
func (s *BPF) Describe(slots int) (all []Listener, runs []SlotRuns) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		all = append(all, Listener{Name: l.name, Address: l.address, Protocol: l.protocol, Closed: !l.open, Missed: l.sinkMissed(), Runs: l.runs()})
	}
	return all, s.runs(slots)
}

// CountsOf sums one listener's counters, of TCP, over all slots.
func (s *BPF) CountsOf(conf config.Listener) (reuseport.Counts, error) {
	l := s.at(conf, false)
	if l == nil {
		return reuseport.Counts{}, fmt.Errorf("there is no listener %s", conf.Name)
	}
	return l.group.Counters()
}

// runs reads a listener's counters; those that are zero are left out.
func (l *listener) runs() map[string]uint64 {
	counts, err := l.group.Counters()
	if err != nil {
		return nil
	}
	return byReason(counts)
}

// runs reads the counters of the first slots, as many as have ever been used,
// and of none; those that are zero are left out.
func (s *BPF) runs(slots int) []SlotRuns {
	var all []SlotRuns
	for slot := range reuseport.Slots + 1 {
		if slot >= slots && slot != reuseport.NoSlot {
			continue
		}
		counts, err := s.node.Counters(slot)
		if err != nil || counts == (reuseport.Counts{}) {
			continue
		}
		runs := SlotRuns{Slot: slot, Reasons: byReason(counts)}
		if slot == reuseport.NoSlot {
			runs.Slot = -1
		}
		all = append(all, runs)
	}
	return all
}

func byReason(counts reuseport.Counts) map[string]uint64 {
	reasons := map[string]uint64{}
	for r, n := range counts {
		if n > 0 {
			reasons[reuseport.Reason(r).String()] = n
		}
	}
	return reasons
}

// lost is how many runs on the listener found nobody.
func (l *listener) lost() uint64 {
	counts, err := l.group.Counters()
	if err != nil {
		return l.lostBefore
	}
	return counts[reuseport.Lost]
}

// Counts sums one slot's counters. Who was refused by a closed listener is not
// lost.
func (s *BPF) Counts(slot int) (reuseport.Counts, error) {
	counts, err := s.node.Counters(slot)
	if err != nil || slot != reuseport.NoSlot {
		return counts, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	refused := s.refused
	for _, l := range s.listeners {
		if !l.open {
			refused += less(l.lost(), l.lostBefore)
		}
	}
	counts[reuseport.Lost] = less(counts[reuseport.Lost], refused)
	return counts, nil
}

// less is a-b, and 0 where a counter fell.
func less(a, b uint64) uint64 { return a - min(a, b) }
