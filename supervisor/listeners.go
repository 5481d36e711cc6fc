package supervisor

import (
	"errors"
	"slices"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// forgetListeners gives the addresses back that nobody needs any more. s.mu is held.
func (s *Supervisor) forgetListeners() {
	if s.shift.current == nil || !s.steering.AnyShut() {
		return // while nobody serves, clients wait wherever somebody may
	}
	var living []steer.Addresses
	for _, g := range s.generations {
		if !g.leftover() {
			living = append(living, g.recipe.addresses)
		}
	}
	if r := s.running; r != nil && r.wants != nil {
		living = append(living, r.wants)
	}
	if err := s.steering.Forget(living...); err != nil {
		s.log.Error("give listeners back", "error", err)
	}
}

// openListeners opens those that the release adds, now that it has flows.
func (s *Supervisor) openListeners() error {
	if !s.steering.AnyShut() {
		return nil
	}
	if err := s.steering.Fence(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.steering.Open(s.shift.addresses()...)
}

// openAdopted opens the listeners of who was found to serve, under their names, and
// gives them who came before that was known. With nobody in the shift those of the file
// open, as they do at a first start. moved says that packets may be on their way by
// another shift than the one in force.
func (s *Supervisor) openAdopted(moved bool) error {
	by := s.steering
	if moved { // an interrupted release may just have been undone
		if err := by.Fence(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.shift.current; g != nil {
		by.Rename(g.recipe.config, nil)
		return errors.Join(by.Open(s.shift.addresses()...), by.EmptySinks())
	}
	return by.Open(steer.AddressesOf(s.config))
}

// adoptedListeners are those of the configuration, and then those that only other
// adopted generations have: they drain, or are held for a rollback.
func (s *Supervisor) adoptedListeners() []config.Listener {
	all := slices.Clone(s.config.Listeners)
	for _, g := range s.generations {
		if !g.leftover() {
			all = append(all, g.recipe.config.Listeners...)
		}
	}
	return all
}

// numberInIDs is the node's number in connection IDs: that of the connections which
// adopted generations have, whatever the file says by now.
func (s *Supervisor) numberInIDs() uint32 {
	for _, g := range s.generations {
		if !g.leftover() && slices.ContainsFunc(g.recipe.config.Listeners, config.Listener.HasDatagrams) {
			return g.recipe.config.Node.ServerID
		}
	}
	return s.config.Node.ServerID
}

// addresses are the listeners of who is in the shift.
func (f *shiftInForce) addresses() (all []steer.Addresses) {
	for _, g := range []*generation{f.current, f.other} {
		if g != nil && !g.leftover() {
			all = append(all, g.recipe.addresses)
		}
	}
	return all
}

// admit makes room for the listeners of a candidate.
func (s *Supervisor) admit(r *release) error {
	s.mu.Lock()
	r.wants = r.recipe.addresses
	s.mu.Unlock()
	return s.steering.Admit(r.recipe.config)
}
