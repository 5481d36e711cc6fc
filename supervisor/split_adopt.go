package supervisor

import (
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/state"
)

// What the next supervisor has to know of listeners that are split: where their new
// flows go it reads from the kernel, and from the file only where the kernel knows nothing.

// noteSplit writes down who has which listeners. s.mu is held.
func (s *Supervisor) noteSplit() {
	st := &s.state
	st.Current, st.Own, st.Loan = 0, idsOf(s.owners()), nil
	if g := s.shift.current; g != nil {
		st.Current = g.id
	}
	if l := s.borrowed; l != nil {
		st.Loan = &state.Loan{By: l.by.id, From: idsOf(l.from)}
	}
}

func idsOf(generations map[string]*generation) map[string]uint64 {
	if len(generations) == 0 {
		return nil
	}
	all := map[string]uint64{}
	for name, g := range generations {
		all[name] = 0
		if g != nil {
			all[name] = g.id
		}
	}
	return all
}

// byID finds generations that live; nil stands for those that do not. s.mu is held.
func (s *Supervisor) byID(ids map[string]uint64) map[string]*generation {
	all := map[string]*generation{}
	for name, id := range ids {
		all[name] = nil
		for _, g := range s.generations {
			if g.id == id && !g.leftover() {
				all[name] = g
			}
		}
	}
	return all
}

// readOwn learns which listeners have a shift of their own. s.mu is held.
func (s *Supervisor) readOwn(all reuseport.Shift, own map[string]reuseport.Shift, serves func(*generation) bool) {
	for name, word := range own {
		f := shiftInForce{current: s.slots[word.Current], other: s.slots[word.Other], weight: float64(word.Weight) / 65536, salt: word.Salt}
		if !serves(f.current) {
			f.current = nil
		}
		// What stands there beside a whole shift is who has the other listeners.
		if !serves(f.other) || f.other == f.current || word.Weight == 0 && word.Other == all.Current {
			f.other, f.weight = nil, 0
		}
		if f.current == nil {
			f = shiftInForce{current: f.other, salt: f.salt}
		}
		s.own[name] = f
	}
	s.settle()
}

// readLoan goes on with what a rollback would give back. s.mu is held.
func (s *Supervisor) readLoan() {
	l := s.state.Loan
	if l == nil {
		return
	}
	by := s.byID(map[string]uint64{"": l.By})[""]
	from := s.byID(l.From)
	for name, id := range l.From {
		if by == nil || id == 0 || from[name] == nil {
			return
		}
	}
	s.borrowed = &loan{by, from}
}
