package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/demo"
)

func inTakeover(c *config.Config) {
	c.Steering = config.SteeringTakeover
	c.Release.ReadyTimeout = 30 * time.Second
}

func TestTakeoverReleases(t *testing.T) {
	n := serve(t, conf(t, "gentle", inTakeover))
	stop := n.load()
	for want := uint64(2); want <= 4; want++ {
		res := n.release(n.conf, Request{})
		if res.Outcome != Passed || res.Generation != want || res.Previous != want-1 {
			t.Fatalf("release: %+v", res)
		}
		if evidence := fmt.Sprint(res.Evidence); !strings.Contains(evidence, "no probe") || !strings.Contains(evidence, "nobody counted") {
			t.Errorf("the result does not say what it does not rest on: %s", evidence)
		}
	}
	if ok, failed := stop(); failed != 0 || ok == 0 {
		t.Errorf("%d requests answered, %d failed", ok, failed)
	}
	eventually(t, "old generations end", func() bool { return len(n.s.Status().Generations) == 1 })
	st := n.s.Status()
	if st.Steering != "takeover" || st.Because == "" || st.Guard.Active {
		t.Errorf("status: %+v", st)
	}
}

// What waits in the queue is nobody's: it outlives whoever has not accepted it.
func TestTakeoverQueueOutlivesACrash(t *testing.T) {
	n := serve(t, conf(t, "serve", inTakeover))
	pid := n.generation(1).PID
	p, err := demo.OpenProcess(pid, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 20)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", n.addr); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	syscall.Kill(pid, syscall.SIGKILL)
	for i, c := range conns {
		if who, err := ask(c, "/"); err != nil || who != "2" {
			t.Errorf("connection %d: answered by %q, %v", i, who, err)
		}
	}
}

// A candidate that fails is told to stop, and the old generation has never been.
func TestTakeoverGoesBack(t *testing.T) {
	for how, want := range map[string]Outcome{
		"die-unready": Refused,
		"mute":        Refused,
		"hang-up":     RolledBack,
	} {
		t.Run(how, func(t *testing.T) {
			n := serve(t, conf(t, "serve", inTakeover))
			res := n.release(n.like(how, func(c *config.Config) {
				c.Release.Verify.Window = 30 * time.Second // hang-up ends it
				if how == "mute" {
					c.Release.ReadyTimeout = 300 * time.Millisecond
				}
			}), Request{})
			if res.Outcome != want {
				t.Errorf("%+v", res)
			}
			// Who shut the sockets down did so for all, and the server of this test
			// takes that for the end; it is replaced.
			eventually(t, "somebody serves", func() bool { _, err := n.get("/"); return err == nil })
			eventually(t, "the candidate ends", func() bool { return n.generation(2) == nil })
			if res := n.release(n.conf, Request{}); res.Outcome != Passed {
				t.Errorf("the next release: %+v", res)
			}
		})
	}
}

// A rollback in the middle of a release takes nothing from who the candidate
// has accepted.
func TestTakeoverRollback(t *testing.T) {
	n := serve(t, conf(t, "gentle", inTakeover))
	stop := n.load()
	r, err := n.enqueue(n.like("gentle", func(c *config.Config) { c.Release.Verify.Window = time.Hour }), Request{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the candidate is watched", func() bool {
		st := n.s.Status()
		return st.Release != nil && st.Release.Stage == "verify"
	})
	eventually(t, "it answers", func() bool { who, err := n.get("/"); return err == nil && who == "2" })
	if _, err := n.s.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.result.Outcome != RolledBack || r.result.ExitCode != 3 {
		t.Errorf("%+v", r.result)
	}
	eventually(t, "the candidate ends", func() bool { return n.generation(2) == nil })
	if who, err := n.get("/"); err != nil || who != "1" {
		t.Errorf("%q, %v", who, err)
	}
	if ok, failed := stop(); failed != 0 || ok == 0 {
		t.Errorf("%d requests answered, %d failed", ok, failed)
	}
}

// What the mode cannot do is refused before anything is started.
func TestTakeoverRefuses(t *testing.T) {
	n := serve(t, conf(t, "serve", inTakeover))
	for name, change := range map[string]struct {
		request Request
		config  func(*config.Config)
		reason  string
	}{
		"ramp asked for": {Request{Ramp: []config.Percent{0.1, 1}}, func(*config.Config) {}, "validate: the ramp gives the candidate 10% of new flows, and takeover mode cannot"},
		"ramp in the file": {Request{}, func(c *config.Config) { c.Release.Ramp = []config.Percent{0.5, 1} },
			"validate: the ramp gives the candidate 50% of new flows"},
		"blocking mode": {Request{}, func(c *config.Config) { c.Proxy.Nonblocking = false }, "validate: proxy.nonblocking would become false"},
	} {
		t.Run(name, func(t *testing.T) {
			res := n.release(n.like("serve", change.config), change.request)
			if res.Outcome != Refused || !strings.HasPrefix(res.Reason, change.reason) {
				t.Errorf("%+v", res)
			}
		})
	}
	if res := n.release(n.conf, Request{Ramp: []config.Percent{1}}); res.Outcome != Passed {
		t.Errorf("a ramp of one step, which is none: %+v", res)
	}
}
