package supervisor

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// splitLeft is a supervisor that has found generations, each with the listeners a
// and b.
func splitLeft(all ...*generation) *Supervisor {
	for _, g := range all {
		g.recipe.config.Listeners = []config.Listener{{Name: "a", Address: "127.0.0.1:1"}, {Name: "b", Address: "127.0.0.1:2"}}
	}
	return &Supervisor{config: config.Default(), log: slog.New(slog.DiscardHandler), steering: shiftsOnly{Steering: new(steer.Takeover), exclusive: true}, outcomes: map[Outcome]uint64{}, own: split{}, generations: all}
}

func (s *Supervisor) ownerIDs() map[string]uint64 {
	all := map[string]uint64{}
	for _, l := range []string{"a", "b"} {
		if g := s.shiftOf(l).current; g != nil {
			all[l] = g.id
		}
	}
	return all
}

func wantOwnerIDs(t *testing.T, s *Supervisor, a, b uint64) {
	t.Helper()
	if got, want := s.ownerIDs(), map[string]uint64{"a": a, "b": b}; !maps.Equal(got, want) {
		t.Errorf("owners %v, want %v", got, want)
	}
}

// A release of one listener is undone also where its candidate has become the one
// with all others: their generation died with the supervisor, or had nothing left.
func TestInterruptedReleaseOfTheLastListener(t *testing.T) {
	before, candidate := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper())
	s := splitLeft(before, candidate)
	s.shift = shiftInForce{current: candidate}
	s.undoInterrupted(&state.Release{ID: 7, Candidate: 2, Previous: 1, Listeners: []string{"a"}, Own: map[string]uint64{"b": 9}})
	s.sortOut()
	if got := s.history[0].Outcome; got != RolledBack {
		t.Errorf("outcome %s", got)
	}
	wantOwnerIDs(t, s, 1, 1)
	if s.reserve != nil || candidate.state != Draining {
		t.Errorf("generation %v is held, the candidate is %s", s.reserve, candidate.state)
	}
}

// Where only the file can say who was to serve, and that one has ended, those that
// served beside it do.
func TestWhoServedBesideServesOn(t *testing.T) {
	beside := left(t, 1, Serving, sleeper())
	s := splitLeft(beside, left(t, 3, Draining, sleeper()))
	s.state.Current = 2
	s.readShift()
	wantOwnerIDs(t, s, 1, 1)

	other := left(t, 3, Serving, sleeper())
	s = splitLeft(beside, other)
	s.state.Current, s.state.Own = 2, map[string]uint64{"a": 3}
	s.readShift()
	wantOwnerIDs(t, s, 3, 3)
}

// A rollback of some listeners is of these alone, also where it cannot be had at
// once: what was held for it does not get the others.
func TestHeldGenerationGetsNoMoreThanItHad(t *testing.T) {
	rest, held, by := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper()), left(t, 3, Gone, sleeper())
	by.dead.Store(true)
	s := splitLeft(rest, held)
	s.shift = shiftInForce{current: rest}
	s.reserve, s.borrowed = held, &loan{by, map[string]*generation{"a": held}}
	for _, back := range []func() (Result, bool){s.takeBack, s.backToReserve} {
		if res, ok := back(); ok {
			t.Errorf("%+v", res)
		}
	}
	wantOwnerIDs(t, s, 1, 1)
	if rest.state != Serving || s.reserve != held {
		t.Errorf("generation 1 is %s, %v is held", rest.state, s.reserve)
	}
}

// The listeners in charge are those of who had them before a release that is
// undone, though its candidate serves some.
func TestListenersOfACandidateThatIsUndone(t *testing.T) {
	before, candidate := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper())
	for _, last := range []bool{false, true} {
		s := splitLeft(before, candidate)
		candidate.recipe.config.Listeners = candidate.recipe.config.Listeners[:1:1]
		s.state.Release = &state.Release{Candidate: 2}
		if last {
			s.generations = slices.Delete(s.generations, 0, 1)
		}
		s.goOnWith()
		if got := len(s.config.Listeners); got != map[bool]int{false: 2, true: 1}[last] {
			t.Errorf("nobody else serves: %v; %d listeners", last, got)
		}
	}
}
