package supervisor

import (
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/supervisor/notify"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// noSockets is a steering for generations without listeners.
type noSockets struct{ shiftsOnly }

func (noSockets) Empty(uint8)                          {}
func (noSockets) EmptyDatagrams(uint8)                 {}
func (noSockets) Fence() error                         { return nil }
func (noSockets) Counts(int) (reuseport.Counts, error) { return reuseport.Counts{}, nil }
func (noSockets) InSlot(uint8, *config.Config, steer.Sockets) (in, all int, err error) {
	return 0, 0, nil
}

// adopting makes a supervisor that finds these generations.
func adopting(t *testing.T, found ...*generation) *Supervisor {
	t.Helper()
	dir := t.TempDir()
	socket, err := notify.Listen(filepath.Join(dir, "notify"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{
		log: slog.New(slog.DiscardHandler), config: &config.Config{}, file: state.In(dir), notify: socket,
		keeper: new(keeper.Warden), steering: noSockets{shiftsOnly{Steering: new(steer.Takeover), exclusive: true}},
		outcomes: map[Outcome]uint64{}, counted: account.NewCounted(), dropped: map[string]uint64{}, abandon: make(chan struct{}), hurried: make(chan struct{}),
		wake: make(chan struct{}, 1), generations: slices.Clone(found),
	}
	s.ids = idkeys.New(idkeys.Options{Log: s.log})
	for _, g := range found {
		g.adopted, g.ready = true, make(chan struct{})
		g.exited, g.squeezed = make(chan struct{}), make(chan struct{})
		if g.recipe.binary, err = spawn.Open("/proc/self/exe"); err != nil {
			t.Fatal(err)
		}
		s.slots[g.slot] = g
	}
	s.work.Go(s.hear)
	t.Cleanup(func() {
		s.mu.Lock()
		s.stopping = true // nobody is started again
		s.mu.Unlock()
		for _, g := range found {
			g.kill()
		}
		socket.Close()
		s.work.Wait()
	})
	return s
}

// A candidate that is killed at the adoption is forgotten as any other that has
// ended: its slot is free, and it does not count among those that live.
func TestDismissedCandidateIsForgotten(t *testing.T) {
	serves, candidate := left(t, 1, Serving, sleeper()), left(t, 2, Ready, sleeper())
	s := adopting(t, serves, candidate)
	s.state.Release = &state.Release{ID: 7, Candidate: 2, Previous: 1}
	s.adopt("")
	eventually(t, "the candidate is forgotten", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.generations) == 1 && s.slots[2] == nil
	})
}

// Where the first generation does not serve, leftovers are left once more. What
// was adopted is ended, and whoever waits for that has to hear of it.
func TestAdoptedIsNotAbandoned(t *testing.T) {
	g := left(t, 1, Serving, sleeper())
	s := adopting(t, g)
	s.adopt("")
	close(s.abandon)
	time.Sleep(200 * time.Millisecond) // whoever looks at it now and then has looked
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	g.kill()
	select {
	case <-g.exited:
	case <-time.After(10 * time.Second):
		t.Fatal("its end is seen by nobody")
	}
}
