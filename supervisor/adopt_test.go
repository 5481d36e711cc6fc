package supervisor

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// shiftsOnly is a steering of which an adoption needs no more than this.
type shiftsOnly struct {
	steer.Steering
	exclusive bool
}

func (s shiftsOnly) Chooses() bool                                         { return s.exclusive }
func (s shiftsOnly) Shift(_ reuseport.Shift, _ map[string]reuseport.Shift) {}

func sleeper() *exec.Cmd { return exec.Command("sleep", "600") }

// left is a generation with a process that ends when it is killed, and by nothing else.
func left(t *testing.T, id uint64, st State, cmd *exec.Cmd) *generation {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p, err := spawn.Attach(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	c := &config.Config{}
	c.Release.DrainTimeout = time.Minute
	return &generation{id: id, slot: uint8(id), state: st, recipe: &recipe{config: c}, process: p}
}

// Whoever may have flows is never killed: what a release had come to when its
// supervisor died stands in the candidate's state, also when the shift has gone
// back already.
func TestInterruptedReleaseIsUndone(t *testing.T) {
	for name, c := range map[string]struct {
		state   State
		shared  bool // queues: steering chooses nobody
		inShift bool
		killed  bool
		outcome Outcome
	}{
		"not ready":           {state: Starting, killed: true, outcome: Refused},
		"being probed":        {state: Ready, killed: true, outcome: Refused},
		"shared queues":       {state: Ready, shared: true, outcome: Refused},
		"shift not noted":     {state: Ready, inShift: true, outcome: RolledBack},
		"serving":             {state: Serving, inShift: true, outcome: RolledBack},
		"gone back already":   {state: Serving, outcome: RolledBack},
		"on its way out":      {state: Draining, outcome: RolledBack},
		"on its way, shared":  {state: Draining, shared: true, outcome: RolledBack},
		"serving with shared": {state: Serving, shared: true, inShift: true, outcome: RolledBack},
	} {
		t.Run(name, func(t *testing.T) {
			previous, candidate := left(t, 1, Serving, sleeper()), left(t, 2, c.state, sleeper())
			s := &Supervisor{config: config.Default(), log: slog.New(slog.DiscardHandler), steering: shiftsOnly{Steering: new(steer.Takeover), exclusive: !c.shared}, outcomes: map[Outcome]uint64{},
				generations: []*generation{previous, candidate}}
			s.shift.current = previous
			if c.inShift {
				s.shift = shiftInForce{current: candidate, other: previous}
			}
			s.undoInterrupted(&state.Release{ID: 7, Candidate: 2, Previous: 1})
			s.sortOut()
			if got := s.history[0].Outcome; got != c.outcome {
				t.Errorf("outcome %s, want %s", got, c.outcome)
			}
			if s.shift.current != previous || previous.state != Serving || s.reserve != nil {
				t.Errorf("generation 1 is %s, the shift is %+v, held is %v", previous.state, s.shift, s.reserve)
			}
			if candidate.stopping != c.killed {
				t.Errorf("killed: %v, want %v", candidate.stopping, c.killed)
			}
			if !c.killed && candidate.state != Draining {
				t.Errorf("the candidate is %s", candidate.state)
			}
		})
	}
}

// Nobody is forgotten: a candidate of whom its release was not yet known, and a
// generation that was held for a rollback.
func TestEveryAdoptedGenerationHasAPart(t *testing.T) {
	serves, held, unknown, old := left(t, 3, Serving, sleeper()), left(t, 2, Serving, sleeper()), left(t, 4, Starting, sleeper()), left(t, 1, Draining, sleeper())
	s := &Supervisor{log: slog.New(slog.DiscardHandler), steering: shiftsOnly{Steering: new(steer.Takeover), exclusive: true}, generations: []*generation{old, held, serves, unknown}}
	s.shift = shiftInForce{current: serves, other: held}
	s.sortOut()
	if s.reserve != held || held.state != Serving {
		t.Errorf("held is %v", s.reserve)
	}
	if !unknown.stopping {
		t.Error("a candidate that nobody waits for lives on")
	}
	if serves.stopping || serves.state != Serving || old.state != Draining || old.stopping {
		t.Errorf("generation 3 is %s, generation 1 %s", serves.state, old.state)
	}
}

// That a generation was told stands on record before it is. One that listens still
// has not been; one that does not, or whose ways nobody knows, is not told again.
func TestToldIsWhoListensNoMore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cookie, err := unix.GetsockoptUint64(int(f.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ listens, baton, told bool }{
		"listens":        {listens: true, baton: true},
		"has closed":     {baton: true, told: true},
		"another server": {listens: true, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sleep", "600")
			if c.listens {
				cmd.ExtraFiles = []*os.File{f}
			}
			g := left(t, 1, Draining, cmd)
			g.recipe.config.Proxy.Baton = c.baton
			g.stood, g.exited = map[string][]uint64{"web": {cookie}}, make(chan struct{})
			s := &Supervisor{log: slog.New(slog.DiscardHandler)}
			if told := s.wasTold(g); told != c.told {
				t.Errorf("told: %v, want %v", told, c.told)
			}
		})
	}
}
