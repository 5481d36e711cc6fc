package supervisor

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/supervisor/state"
)

// What goes into the state file, and when; see package state for the file itself.

// persist writes the state file. s.mu is held.
func (s *Supervisor) persist() error {
	s.compose()
	s.state.Clock = state.Now()
	s.unsaved = s.file.Save(s.state)
	return s.unsaved
}

// compose makes the record say what is so. s.mu is held.
func (s *Supervisor) compose() {
	s.state.Generations = s.state.Generations[:0]
	for _, g := range s.generations {
		s.state.Generations = append(s.state.Generations, g.record())
	}
	if s.born != nil {
		s.state.Generations = append(s.state.Generations, s.born.record())
	}
	s.state.Release = nil
	s.noteSplit()
	if r := s.running; r != nil {
		s.state.Release = &state.Release{ID: r.result.ID, Cause: r.cause, Started: r.queued, Listeners: r.only, Own: idsOf(r.owners)}
		if r.candidate != nil {
			s.state.Release.Candidate = r.candidate.id
		}
		if r.previous != nil {
			s.state.Release.Previous = r.previous.id
		}
	}
	s.state.Salt = s.shift.salt
}

// note is persist where nothing can be done about a failure. s.mu is held.
func (s *Supervisor) note() {
	if err := s.persist(); err != nil {
		s.log.Error("the state file cannot be written: should this supervisor die, the next one goes by what it says", "error", err)
	}
}

// noteDraining writes that a generation drains, unless the record has it, as it does
// where its release had ended before. s.mu is held.
func (s *Supervisor) noteDraining(g *generation) {
	for _, was := range s.state.Generations {
		if was.ID == g.id && was.State == string(Draining) && s.unsaved == nil {
			return
		}
	}
	s.note()
}

// noteAgain writes a state file that could not be written when something changed, the
// disk being full perhaps.
func (s *Supervisor) noteAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved != nil && s.persist() == nil {
		s.log.Info("the state file is written again")
	}
}

// recordOf is a recipe for the state file.
func recordOf(r *recipe) *state.Recipe {
	return &state.Recipe{Binary: r.binary.Path, Stamp: r.binary.Stamp(), Config: r.configPath, UID: r.account.UID, GID: r.account.GID}
}

// record is a generation for the state file. Supervisor.mu is held.
func (g *generation) record() state.Generation {
	st := state.Generation{ID: g.id, PID: g.process.PID, StartTime: g.startTime, Slot: g.slot, State: string(g.state), Started: g.started, Deadline: g.deadline, Told: g.told, ToldAt: g.toldAt}
	if g.recipe != nil {
		st.Recipe, st.Cookies = recordOf(g.recipe), map[string][]uint64{}
		for name, workers := range g.sockets {
			for _, sock := range workers {
				st.Cookies[name] = append(st.Cookies[name], sock.Cookie)
			}
		}
		if g.stood != nil {
			st.Cookies = g.stood
		}
	}
	return st
}

// passUnknown counts on from generations of which the keeper has something and the record
// knows nothing, since somebody has removed the state file. Nobody can say what they are
// by then; one that got a number of theirs would share their control group, and take them
// along when it ends.
func (s *Supervisor) passUnknown(left map[string]int) {
	unknown := map[uint64]bool{}
	for name := range left {
		number, _, _ := strings.Cut(name, "/")
		if id, err := strconv.ParseUint(number, 10, 64); err == nil && id >= s.state.NextGeneration {
			unknown[id] = true
		}
	}
	if len(unknown) == 0 {
		return
	}
	all := slices.Sorted(maps.Keys(unknown))
	s.state.NextGeneration = all[len(all)-1] + 1
	s.log.Warn("the keeper has sockets of generations that the state file does not know: they serve whom they have, and nobody drains them; end them yourself", "generations", all)
}

// MayFollow says why a supervisor of this version could not adopt what another one has
// in a runtime directory: its state, its keeper or its tables have another version. To
// be asked before it is made to leave.
func MayFollow(runtimeDir string) error {
	if _, err := state.In(runtimeDir).Load(); err != nil {
		return err
	}
	if c, err := keeper.Connect(keeper.Socket(runtimeDir)); err == nil {
		defer c.Close()
		if err := c.Ping(); errors.Is(err, keeper.ErrProtocol) {
			return err
		}
	}
	if err := reuseport.Pinned(PinsOf(runtimeDir)); errors.Is(err, reuseport.ErrLayout) {
		return err
	}
	return nil
}
