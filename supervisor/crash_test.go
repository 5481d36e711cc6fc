package supervisor

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/spawn"
)

// The last generation dies: what waited in its queue, and who comes before there
// is another, is served by the one that is started in its place.
func TestServingGenerationDies(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	g := n.s.generations[0]
	syscall.Kill(g.process.PID, syscall.SIGSTOP)
	eventually(t, "it has stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.process.PID))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	answers := make(chan error, 40)
	client := func() {
		_, err := n.get("/")
		answers <- err
	}
	for range 20 {
		go client()
	}
	eventually(t, "clients wait in its queue", func() bool {
		q, err := n.s.queueLengths(g.sockets)
		return err == nil && q.ToAccept == 20
	})
	syscall.Kill(g.process.PID, syscall.SIGKILL)
	for range 20 {
		go client()
	}
	for range 40 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	eventually(t, "generation 2 serves", func() bool { return len(n.s.Results()) == 2 })
	if r := n.s.Results(); len(r) != 2 || r[1].Cause != "crash" || r[1].Outcome != Passed {
		t.Errorf("releases: %+v", r)
	}
}

// While a release runs, its candidate takes over when the old one dies.
func TestPreviousDiesDuringTheRamp(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Second }), Request{Ramp: []config.Percent{0.1, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ramp has begun", func() bool {
		st := n.s.Status()
		return st.Release != nil && st.Release.Weight == 0.1
	})
	syscall.Kill(n.generation(1).PID, syscall.SIGKILL)
	eventually(t, "the candidate has all flows", func() bool { return n.s.Status().Current == 2 })
	if res, _ := r.wait(context.Background()); res.Outcome != Passed {
		t.Errorf("%+v", res)
	}
}

// Both die in the middle of a release: the exit code says that going back
// failed, and what served before is started again for the clients that wait.
func TestBothDieDuringTheRamp(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("helper", func(c *config.Config) { c.Release.Verify.Window = 5 * time.Second }), Request{Ramp: []config.Percent{0.1, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ramp has begun", func() bool {
		st := n.s.Status()
		return st.Release != nil && st.Release.Weight == 0.1
	})
	first, err := spawn.Attach(n.generation(1).PID)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	candidate := n.generation(2).PID
	first.Signal(syscall.SIGKILL)
	if !first.Ended(30 * time.Second) {
		t.Fatal("generation 1 did not end")
	}
	// At once: that the first has ended need not have been noticed.
	syscall.Kill(candidate, syscall.SIGKILL)
	if res, _ := r.wait(context.Background()); res.Outcome != RollbackFailed || res.ExitCode != 6 {
		t.Errorf("%+v", res)
	}
	if _, err := n.get("/"); err != nil {
		t.Errorf("a client that came then: %v", err)
	}
	eventually(t, "it is in service again", func() bool { return n.s.Status().Current == 3 && n.s.Ready() })
	if cmd := commandLine(t, n.generation(3).PID); !strings.HasSuffix(cmd, "serve") {
		t.Errorf("generation 3 runs %q", cmd)
	}
}
