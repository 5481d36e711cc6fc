package faults

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestSupervisorKilledAtEachTransition kills the supervisor at every named transition
// of a release that passes, in two steps, and of its drain; then at those of one that is
// taken back after it has flows. Which they are it learns from a release that nobody
// disturbs. No client sees any of it, and the next supervisor releases again. With
// BATON_KILLS in takeover mode too.
func TestSupervisorKilledAtEachTransition(t *testing.T) {
	modes := []string{"bpf"}
	if os.Getenv("BATON_KILLS") != "" {
		modes = append(modes, "takeover")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			d, load := underDeaths(t, demo.Settings{Steering: mode})
			d.release(t)
			d.settle(t)
			all := d.passed(t, nil)
			for _, at := range all {
				d.dieAt(t, at, d.release)
			}
			d.takeBack(t)
			d.settle(t)
			back := d.passed(t, all)
			for _, at := range back {
				d.dieAt(t, at, d.takeBack)
			}
			if res := d.release(t); res == nil || res.ExitCode != 0 {
				t.Errorf("a release afterwards: %+v", res)
			}
			ok := load.End()
			d.wantSlots(t)
			slices.Sort(d.took)
			t.Logf("killed at %d transitions (%s; %s), %d operations, none failed; in charge after %v in the median, %v at most",
				len(d.took), strings.Join(all, ", "), strings.Join(back, ", "), ok, d.took[len(d.took)/2], d.took[len(d.took)-1])
		})
	}
}

// underDeaths starts a node whose supervisors die where they are told to, under load.
func underDeaths(t *testing.T, settings demo.Settings) (*deaths, *node.Clients) {
	t.Helper()
	settings.VerifyWindow = 20 * time.Millisecond
	n := node.StartMortal(t, settings)
	load := node.Under(t, n, func(l *demo.Load) {
		l.Slow, l.Stream = 50*time.Millisecond, 200*time.Millisecond // for short drains
	})
	write := func(name string) string {
		file, err := n.WriteConfig(name, settings)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	d := &deaths{n: n, file: write("candidate"), chooses: settings.Steering == "bpf", living: 1}
	settings.VerifyWindow = time.Minute
	d.slow = write("slow")
	return d, load
}

// deaths are those of the supervisors of a node.
type deaths struct {
	n          *demo.Node
	file, slow string          // configurations: slow watches for long
	chooses    bool            // the generation of a new flow
	of         []string        // the listeners that releases are of; nil: all
	living     int             // generations, when nothing is under way
	took       []time.Duration // from the start of the next supervisor to its serving
}

func (d *deaths) path(name string) string { return filepath.Join(d.n.Dir, "run", name) }

// passed are the transitions that a supervisor has passed, in their order, once each,
// without those given.
func (d *deaths) passed(t *testing.T, without []string) (all []string) {
	t.Helper()
	data, err := os.ReadFile(d.path("transitions"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if name := strings.TrimSpace(line); !slices.Contains(all, name) && !slices.Contains(without, name) {
			all = append(all, name)
		}
	}
	return all
}

// release asks for a release, where that can be in two steps; nil: its supervisor has
// died.
func (d *deaths) release(t *testing.T) *supervisor.Result {
	t.Helper()
	request := supervisor.Request{ConfigPath: d.file, Listeners: d.of}
	if d.chooses {
		request.Ramp = []config.Percent{0.5, 1}
	}
	return d.ask(t, request)
}

func (d *deaths) ask(t *testing.T, request supervisor.Request) *supervisor.Result {
	t.Helper()
	res, err := admin.Dial(d.n.Socket()).Release(context.WithoutCancel(t.Context()), request)
	if err != nil {
		return nil
	}
	return &res
}

// takeBack asks for a release and, when it has all flows, for the generation before.
func (d *deaths) takeBack(t *testing.T) *supervisor.Result {
	t.Helper()
	released := make(chan *supervisor.Result, 1)
	go func() { released <- d.ask(t, supervisor.Request{ConfigPath: d.slow, Listeners: d.of}) }()
	node.Eventually(t, "the release has flows", func() bool {
		st, err := d.n.Status(t.Context())
		return err != nil || st.Release != nil && st.Release.Stage == "verify"
	})
	admin.Dial(d.n.Socket()).Rollback(context.WithoutCancel(t.Context()))
	return <-released
}

// dieAt lets the supervisor die at a transition of what is asked for, and starts the
// next one.
func (d *deaths) dieAt(t *testing.T, transition string, ask func(*testing.T) *supervisor.Result) {
	t.Helper()
	d.settle(t)
	if err := os.WriteFile(d.path("kill-at"), []byte(transition), 0o600); err != nil {
		t.Fatal(err)
	}
	ask(t)
	node.Eventually(t, "the supervisor dies at: "+transition, func() bool {
		_, err := os.Stat(d.path("kill-at"))
		return errors.Is(err, os.ErrNotExist)
	})
	d.n.Kill() // it dies by itself
	begin := time.Now()
	if err := d.n.Restart(t.Context()); err != nil {
		t.Fatalf("after a death at %s: %v", transition, err)
	}
	d.took = append(d.took, time.Since(begin))
	if st := status(t, d.n); st.Current == 0 {
		t.Fatalf("after a death at %s nobody serves: %+v", transition, st)
	}
}

// wantSlots fails the test if a supervisor could not put what it adopted where the kernel
// finds it.
func (d *deaths) wantSlots(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(d.n.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "sockets are in no slot") {
			t.Error(line)
		}
	}
}

// settle waits until no generation is left but those that serve.
func (d *deaths) settle(t *testing.T) {
	t.Helper()
	node.Eventually(t, "all drains are over", func() bool { return len(status(t, d.n).Generations) == d.living })
}
