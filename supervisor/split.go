package supervisor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// The listeners of a node can be split among generations (docs/decisions/033): a
// release of some of them gives the candidate their new flows and leaves those of
// the others where they are. Each listener then belongs to the generation that it
// was last released for.

// split are the listeners with a shift of their own, by name. All others go by
// Supervisor.shift, whose current generation has one of them at least.
type split map[string]shiftInForce

// loan is what the last release took from generations that may still have a part,
// so that a rollback can give it back.
type loan struct {
	by   *generation
	from map[string]*generation // by listener
}

// isOf reports whether a release moves the flows of a listener.
func (r *release) isOf(listener string) bool {
	return r.only == nil || slices.Contains(r.only, listener)
}

// shiftOf is the shift that new flows of a listener go by. s.mu is held.
func (s *Supervisor) shiftOf(listener string) shiftInForce {
	if f, ok := s.own[listener]; ok {
		return f
	}
	return s.shift
}

// owns reports whether a generation has the new flows of a listener, or all but a
// candidate's share of them. s.mu is held.
func (s *Supervisor) owns(g *generation) bool {
	return g == s.shift.current || s.own.has(func(f shiftInForce) bool { return f.current == g })
}

// inShift reports whether new flows may go to a generation. s.mu is held.
func (s *Supervisor) inShift(g *generation) bool {
	return s.owns(g) || g == s.shift.other || s.own.has(func(f shiftInForce) bool { return f.other == g })
}

func (all split) has(is func(shiftInForce) bool) bool {
	for _, f := range all {
		if is(f) {
			return true
		}
	}
	return false
}

// owners are the generations of the listeners that have a shift of their own. s.mu is held.
func (s *Supervisor) owners() map[string]*generation {
	all := map[string]*generation{}
	for name, f := range s.own {
		all[name] = f.current
	}
	return all
}

// without takes a generation out of a shift, and says whether it was there.
func (f *shiftInForce) without(g *generation) bool {
	switch g {
	case f.current:
		*f = shiftInForce{current: f.other, salt: f.salt}
	case f.other:
		*f = shiftInForce{current: f.current, salt: f.salt}
	default:
		return false
	}
	return true
}

// settle makes the shifts simple again: a listener has one of its own only if it
// goes elsewhere than the others, and where nobody has those, the youngest of the
// generations that have one listener has them all. s.mu is held.
func (s *Supervisor) settle() {
	if s.shift.current == nil {
		for _, f := range s.own {
			if g := f.current; g != nil && g.fit() && (s.shift.current == nil || g.id > s.shift.current.id) {
				s.shift = shiftInForce{current: g, salt: newSalt()}
			}
		}
	}
	maps.DeleteFunc(s.own, func(_ string, f shiftInForce) bool {
		return f.current == nil || f.current == s.shift.current && f.other == nil
	})
}

// divide gives the candidate its share of new flows. s.mu is held.
func (s *Supervisor) divide(r *release, share float64, salt uint32) {
	part := func(old *generation) shiftInForce {
		if r.only != nil && (old == nil || !old.fit()) {
			old = s.shift.current // it has taken over
		}
		if old != nil && !old.fit() || old == r.candidate {
			old = nil // there is nobody to share with
		}
		if share >= 1 || old == nil {
			return shiftInForce{current: r.candidate, other: old, salt: salt}
		}
		return shiftInForce{current: old, other: r.candidate, weight: share, salt: salt}
	}
	if r.only != nil {
		for _, name := range r.only {
			s.own[name] = part(r.previous)
		}
		return
	}
	s.shift, s.own = part(r.previous), split{}
	for name, old := range r.owners {
		if share < 1 && old.fit() {
			s.own[name] = part(old)
		}
	}
}

// giveBack undoes divide: who had listeners before has them again. s.mu is held.
func (s *Supervisor) giveBack(r *release) {
	if r.only == nil {
		s.shift, s.own = shiftInForce{}, split{}
		if r.previous != nil && r.previous.fit() {
			s.shift = shiftInForce{current: r.previous, salt: newSalt()}
		}
		s.restore(r.owners)
	} else {
		s.shift.without(r.candidate) // it has all if the others ended meanwhile
		s.restore(r.before())
	}
	s.settle()
}

// before is who had the listeners that the release is of. s.mu is held.
func (r *release) before() map[string]*generation {
	all := map[string]*generation{}
	for _, name := range r.only {
		all[name] = r.previous
		if g := r.owners[name]; g != nil {
			all[name] = g
		}
	}
	return all
}

// restore gives listeners to generations; one that cannot take them leaves them
// to who has those without a shift of their own. s.mu is held.
func (s *Supervisor) restore(from map[string]*generation) {
	for name, g := range from {
		delete(s.own, name)
		if g != nil && g.fit() && !g.stopping && !g.told && g.state != Draining {
			s.own[name] = shiftInForce{current: g, salt: newSalt()}
		}
	}
}

// closeSplit ends a release of some listeners that leaves the candidate in
// place: they are its own, and when nothing else is left it has everything.
// s.mu is held.
func (s *Supervisor) closeSplit(r *release) {
	s.borrowed = nil
	if r.only == nil {
		return
	}
	s.borrowed = &loan{r.candidate, r.before()}
	for _, name := range r.only {
		s.own[name] = shiftInForce{current: r.candidate, salt: s.shiftOf(name).salt}
	}
	s.rebase(r.candidate)
	s.applyShift()
}

// rebase settles, and if every listener has a shift of its own makes g the one that
// has those without. s.mu is held.
func (s *Supervisor) rebase(g *generation) {
	s.settle()
	if base := s.shift.current; base != nil && !slices.ContainsFunc(base.recipe.config.Listeners, func(l config.Listener) bool {
		_, ok := s.own[l.Name]
		return !ok
	}) {
		s.shift = shiftInForce{current: g, salt: newSalt()}
		s.settle()
	}
}

// takeBack gives the listeners that the last release took back to who had them,
// where those have a part still. s.mu is held.
func (s *Supervisor) takeBack() (Result, bool) {
	t, base := s.borrowed, s.shift.current
	if t == nil || base == nil || s.stopping {
		return Result{}, false
	}
	lent := false
	for name, g := range t.from {
		at := s.shiftOf(name).current
		lent = lent || at == t.by
		if at != t.by && at != g || g == nil || !g.fit() || g.stopping { // g: a supervisor that died had begun
			return Result{}, false
		}
	}
	if !lent {
		return Result{}, false
	}
	names := slices.Sorted(maps.Keys(t.from))
	to := t.from[names[0]]
	r := s.instantRollback(to, t.by)
	r.result.Listeners = names
	if base == t.by && len(s.restOf(base)) == len(names) {
		s.shift = shiftInForce{current: to, salt: newSalt()} // it had all that was left
	}
	s.restore(t.from)
	s.borrowed = nil
	s.settle()
	s.applyShift()
	s.otherCertificates()
	if g := s.reserve; g != nil && s.owns(g) {
		s.reserve = nil
	}
	if again, err := t.by.recipe.again(); err == nil { // a rollback of the rollback
		s.keepRecipe(again, names)
	}
	if !s.owns(t.by) {
		s.retire(t.by, t.by.recipe.config.Release.DrainTimeout)
	}
	s.note()
	s.finish(r, Passed, "")
	return r.result, true
}

// splitable refuses a release of some listeners that would be more than that.
func (s *Supervisor) splitable(r *release) error {
	if r.only == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	base := s.shift.current
	if base == nil {
		return fmt.Errorf("nobody serves: release all listeners")
	}
	all := r.recipe.config.Listeners
	for _, name := range r.only {
		if !slices.ContainsFunc(all, func(l config.Listener) bool { return l.Name == name }) {
			return fmt.Errorf("there is no listener %s", name)
		}
	}
	if words := differ(base.recipe.config.Listeners, all); words != "" {
		return fmt.Errorf("%s: that is for a release of all listeners", words)
	}
	for _, name := range r.only[1:] {
		if one, other := s.shiftOf(r.only[0]).current, s.shiftOf(name).current; one != other {
			return fmt.Errorf("generation %d has listener %s and generation %d has %s: release them one after the other, or all", one.id, r.only[0], other.id, name)
		}
	}
	if len(r.only) == len(all) {
		r.only = nil
		return nil
	}
	r.result.Listeners = r.only
	r.result.Evidence = append(r.result.Evidence, fmt.Sprintf("listeners %s alone; the others stay where they are", strings.Join(r.only, ", ")))
	return nil
}

// differ says how other listeners are not those that are there; a listener's
// settings may differ, not its name and place.
func differ(have, want []config.Listener) string {
	at := map[string]config.Listener{}
	for _, l := range have {
		at[l.Name] = l
	}
	for _, l := range want {
		switch was, ok := at[l.Name]; {
		case !ok:
			return fmt.Sprintf("listener %s would be added", l.Name)
		case was.Address != l.Address || was.DualStack != l.DualStack:
			return fmt.Sprintf("listener %s would move from %s to %s", l.Name, was.Address, l.Address)
		case was.Protocol.HasStreams() != l.Protocol.HasStreams() || was.HasDatagrams() != l.HasDatagrams():
			return fmt.Sprintf("listener %s would begin or cease to take datagrams or streams", l.Name)
		}
		delete(at, l.Name)
	}
	if len(at) > 0 {
		return fmt.Sprintf("listener %s would be removed", slices.Min(slices.Collect(maps.Keys(at))))
	}
	return ""
}

// restOf are the listeners that a generation has, where others have some; nil: it
// has all. s.mu is held.
func (s *Supervisor) restOf(g *generation) (names []string) {
	if len(s.own) == 0 || g.leftover() {
		return nil
	}
	for _, l := range g.recipe.config.Listeners {
		if s.shiftOf(l.Name).current == g {
			names = append(names, l.Name)
		}
	}
	return names
}

// words are the shifts of listeners as the kernel reads them. A listener's own
// falls back to who has the others: it lives, and has the listener too. s.mu is held.
func (s *Supervisor) words() map[string]reuseport.Shift {
	all := make(map[string]reuseport.Shift, len(s.own))
	for name, f := range s.own {
		if f.other == nil {
			f.other = s.shift.current
		}
		all[name] = f.word()
	}
	return all
}

func (f shiftInForce) word() reuseport.Shift {
	word := reuseport.Shift{Current: f.current.slot, Other: f.current.slot, Salt: f.salt}
	if f.other != nil {
		word.Other = f.other.slot
		word.Weight = uint16(min(f.weight*65536+0.5, 65535))
	}
	return word
}
