package supervisor

import (
	"github.com/baton-mesh/baton/bpf/guard"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// openGuard keeps generations from changing the groups that their sockets are
// in. Without it they are trusted, and that is said.
func (s *Supervisor) openGuard(pins string) {
	own, err := cgroup.Find()
	if err == nil {
		s.guard, err = guard.Open(own, pins)
	}
	if err != nil {
		s.log.Warn("no guard: a generation could change the steering of its listeners", "reason", err)
	}
}

// protect puts a generation's sockets under the guard; it ends with them.
func (s *Supervisor) protect(g *generation) {
	if s.guard == nil {
		return
	}
	for _, sockets := range []steer.Sockets{g.sockets, g.datagrams} {
		for name, workers := range sockets {
			for _, sock := range workers {
				if err := s.guard.Protect(sock.FD, g.slot); err != nil {
					s.log.Error("a generation's socket is not guarded", "generation", g.id, "listener", name, "error", err)
				}
			}
		}
	}
}

func (s *Supervisor) closeGuard() {
	if s.guard != nil {
		s.guard.Unpin()
		s.guard.Close()
	}
}

// guardStatus reads the refusals of the first slots, as many as have ever been
// used; those that are zero are left out. s.mu is held.
func (s *Supervisor) guardStatus() GuardStatus {
	st := GuardStatus{Active: s.guard != nil}
	if s.guard == nil {
		return st
	}
	for slot := range s.slotsUsed {
		counts, err := s.guard.Refused(uint8(slot))
		if err != nil || counts == (guard.Counts{}) {
			continue
		}
		refused := SlotRefusals{Slot: slot, Options: map[string]uint64{}}
		for o, n := range counts {
			if n > 0 {
				refused.Options[guard.Option(o).String()] = n
			}
		}
		st.Refused = append(st.Refused, refused)
	}
	return st
}
