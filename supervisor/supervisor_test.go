package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

func TestReleasePasses(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	stop := n.load()
	for want := uint64(2); want <= 4; want++ {
		res := n.release(n.conf, Request{})
		if res.Outcome != Passed || res.Generation != want || res.Previous != want-1 {
			t.Fatalf("release: %+v", res)
		}
		if st := n.s.Status(); st.Current != want || st.State != "serving" {
			t.Errorf("status after release %d: %+v", res.ID, st)
		}
	}
	ok, failed := stop()
	if failed != 0 || ok == 0 {
		t.Errorf("%d requests answered, %d failed", ok, failed)
	}
	eventually(t, "old generations end", func() bool { return len(n.s.Status().Generations) == 1 })
}

// A candidate that fails before the shift costs nothing: clients see none of
// it, the exit code says that nothing moved, and no trace of it is left.
func TestCandidateFailsBeforeTheShift(t *testing.T) {
	for how, stage := range map[string]string{
		"die-unready":     "start: generation 2 ended before it was ready: exit status 3",
		"mute":            "start: generation 2 was not ready within 300ms",
		"die-at-probe":    "probe: ",
		"die-when-ready":  "",
		"stop-when-ready": "probe: ",
	} {
		t.Run(how, func(t *testing.T) {
			n := serve(t, conf(t, "serve"))
			stop := n.load()
			res := n.release(n.like(how, func(c *config.Config) { c.Release.ReadyTimeout = 300 * time.Millisecond }), Request{})
			if res.Outcome != Refused || res.ExitCode != 5 || !strings.HasPrefix(res.Reason, stage) {
				t.Errorf("%s, exit code %d, reason %q; want refused, 5, %q", res.Outcome, res.ExitCode, res.Reason, stage)
			}
			if _, failed := stop(); failed != 0 {
				t.Errorf("%d clients noticed", failed)
			}
			if st := n.s.Status(); st.Current != 1 || len(st.Generations) != 1 || st.Generations[0].State != Serving {
				t.Errorf("status: %+v", st)
			}
			if res := n.release(n.conf, Request{}); res.Outcome != Passed {
				t.Errorf("the next release: %+v", res)
			}
		})
	}
}

// READY=1 counts only from the generation itself: a datagram that any user can
// send must not let an unready candidate have flows.
func TestReadyFromAStranger(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	quit := make(chan struct{})
	var stranger sync.WaitGroup
	stranger.Go(func() {
		c, err := net.Dial("unixgram", n.s.notify.Path())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for {
			select {
			case <-quit:
				return
			case <-time.After(10 * time.Millisecond):
				c.Write([]byte("READY=1"))
			}
		}
	})
	res := n.release(n.like("mute", func(c *config.Config) { c.Release.ReadyTimeout = 500 * time.Millisecond }), Request{})
	close(quit)
	stranger.Wait()
	if res.Outcome != Refused || !strings.Contains(res.Reason, "was not ready") {
		t.Errorf("%+v", res)
	}
	if !strings.Contains(n.log.String(), "stranger") {
		t.Error("the log does not name the stranger")
	}
}

func TestReadyFromAHelper(t *testing.T) {
	n := serve(t, conf(t, "helper"))
	if got, err := n.get("/"); err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A candidate that is killed with flows on it: what it had accepted is lost
// with it, what it had not is served by the previous generation, and new flows
// are there at once.
func TestCandidateKilledAfterTheShift(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("never-accept", func(c *config.Config) { c.Release.Verify.Window = 5 * time.Second }), Request{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "all new flows go to the candidate", func() bool {
		st := n.s.Status()
		return st.Release != nil && st.Release.Stage == "verify"
	})
	conns := make([]net.Conn, 20)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", n.addr); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	eventually(t, "they wait at the candidate", func() bool {
		q, err := n.s.queueLengths(r.candidate.sockets)
		return err == nil && q.ToAccept == len(conns)
	})
	syscall.Kill(n.generation(2).PID, syscall.SIGKILL)
	res, _ := r.wait(context.Background())
	if res.Outcome != RolledBack || res.ExitCode != 3 || !strings.Contains(res.Reason, "killed by SIGKILL") {
		t.Errorf("%+v", res)
	}
	for i, c := range conns {
		if _, err := ask(c, "/"); err != nil {
			t.Errorf("connection %d of the queue it left: %v", i, err)
		}
	}
	if _, err := n.get("/"); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	if st := n.s.Status(); st.Current != 1 || len(st.Generations) != 1 {
		t.Errorf("status: %+v", st)
	}
}

// A candidate that gives its listening sockets up is found out by their
// cookies, and flows that came meanwhile fell to the previous generation.
func TestCandidateHangsUp(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	stop := n.load()
	res := n.release(n.like("hang-up", func(c *config.Config) { c.Release.Verify.Window = 3 * time.Second }), Request{})
	if res.Outcome != RolledBack || !strings.Contains(res.Reason, "given up 1 of its 1 listening sockets") {
		t.Errorf("%+v", res)
	}
	if _, failed := stop(); failed != 0 {
		t.Errorf("%d clients noticed", failed)
	}
}

func TestRollback(t *testing.T) {
	t.Run("of a release that runs", func(t *testing.T) {
		n := serve(t, conf(t, "serve"))
		stop := n.load()
		r, err := n.enqueue(n.conf, Request{Ramp: []config.Percent{0.5, 1}})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the ramp has begun", func() bool {
			st := n.s.Status()
			return st.Release != nil && st.Release.Weight > 0
		})
		res, err := n.s.Rollback(context.Background())
		if err != nil || res.ID != r.result.ID || res.Outcome != RolledBack {
			t.Errorf("%+v, %v", res, err)
		}
		if n.s.Status().Current != 1 {
			t.Errorf("current is %d", n.s.Status().Current)
		}
		if _, failed := stop(); failed != 0 {
			t.Errorf("%d clients noticed", failed)
		}
	})
	t.Run("of a release that passed", func(t *testing.T) {
		n := serve(t, conf(t, "serve"))
		if _, err := n.s.Rollback(context.Background()); err == nil {
			t.Error("rolled back to nothing")
		}
		n.release(n.like("helper"), Request{})
		eventually(t, "the old one ends", func() bool { return n.generation(1) == nil })
		res, err := n.s.Rollback(context.Background())
		if err != nil || res.Outcome != Passed || res.Generation != 3 {
			t.Fatalf("%+v, %v", res, err)
		}
		if cmd := commandLine(t, n.generation(3).PID); !strings.HasSuffix(cmd, "serve") {
			t.Errorf("generation 3 runs %q, not what generation 1 ran", cmd)
		}
	})
}

func commandLine(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ")
}

// One runs, one waits, the latest wins, and those passed over are told.
func TestStormOfRequests(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	stop := n.load()
	const requests = 50
	results := make(chan Result, requests)
	for range requests {
		r, err := n.enqueue(n.conf, Request{NoVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		go func() { res, _ := r.wait(context.Background()); results <- res }()
	}
	count := map[Outcome]int{}
	for range requests {
		res := <-results
		count[res.Outcome]++
		if res.Outcome == Superseded && res.ExitCode != 5 {
			t.Errorf("%+v", res)
		}
	}
	if count[Passed] < 1 || count[Passed]+count[Superseded] != requests {
		t.Errorf("outcomes: %v", count)
	}
	if last := n.s.Results(); last[len(last)-1].ID != uint64(1+requests) || last[len(last)-1].Outcome != Passed {
		t.Errorf("the last request did not win: %+v", last[len(last)-1])
	}
	if _, failed := stop(); failed != 0 {
		t.Errorf("%d clients noticed", failed)
	}
}

// A generation that does not stop is killed at its deadline, and the oldest
// drain is cut short when there are too many.
func TestDrainEnds(t *testing.T) {
	t.Run("at the deadline", func(t *testing.T) {
		n := serve(t, conf(t, "stubborn", func(c *config.Config) { c.Release.DrainTimeout = 500 * time.Millisecond }))
		n.release(n.like("serve"), Request{})
		if g := n.generation(1); g == nil || g.State != Draining || g.Deadline.IsZero() {
			t.Errorf("generation 1: %+v", g)
		}
		eventually(t, "it is killed", func() bool { return n.generation(1) == nil })
	})
	t.Run("at the cap", func(t *testing.T) {
		n := serve(t, conf(t, "stubborn", func(c *config.Config) {
			c.Release.DrainTimeout = time.Hour
			c.Release.MaxGenerations = 3
		}))
		for i := range 4 {
			res := n.release(n.conf, Request{NoVerify: true})
			if res.Outcome != Passed {
				t.Fatalf("%+v", res)
			}
			if told := strings.Contains(fmt.Sprint(res.Evidence), "max_generations is 3"); told != (i >= 2) {
				t.Errorf("release %d: %v", i+2, res.Evidence)
			}
			if live := len(n.s.Status().Generations); live > 3 {
				t.Errorf("%d generations live", live)
			}
		}
		if !strings.Contains(n.log.String(), "too many generations") {
			t.Error("the log does not say why a drain was cut short")
		}
		// The serving one is started again if it is found dead before the end is.
		ended := make(chan struct{})
		go func() {
			n.stop()
			close(ended)
		}()
		for {
			for _, g := range n.s.Status().Generations {
				syscall.Kill(g.PID, syscall.SIGKILL)
			}
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

// A process may run for months: what it holds must not grow by the release.
func TestNothingIsLeftOfAGeneration(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	n.release(n.conf, Request{NoVerify: true})
	eventually(t, "the old one ends", func() bool { return len(n.s.Status().Generations) == 1 })
	before := len(descriptors())
	for range 10 {
		n.release(n.conf, Request{NoVerify: true})
	}
	eventually(t, "the old ones end", func() bool { return len(n.s.Status().Generations) == 1 })
	if after := len(descriptors()); after > before {
		t.Errorf("%d descriptors, %d before ten releases: %v", after, before, descriptors())
	}
	entries, err := os.ReadDir(pinsOf(n))
	if err != nil || len(entries) != 10 { // nine maps and the program
		t.Errorf("pins: %v, %v", entries, err)
	}
	n.stop()
	if _, err := os.Stat(pinsOf(n)); !os.IsNotExist(err) {
		t.Errorf("pins after the end: %v", err)
	}
}

func pinsOf(n *node) string {
	return "/sys/fs/bpf/baton/" + instanceName(n.conf.RuntimeDir) + "/v2"
}

// A second supervisor in the same directory, and one on the same address, are
// told no, and what runs notices nothing.
func TestSecondSupervisor(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	if _, err := New(Options{Config: n.conf}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another supervisor (pid %d)", os.Getpid())) {
		t.Errorf("same directory: %v", err)
	}
	other := conf(t, "serve")
	other.Listeners = n.conf.Listeners
	stop := n.load()
	if _, err := New(Options{Config: other}); err == nil {
		t.Errorf("same address: accepted")
	}
	if _, failed := stop(); failed != 0 {
		t.Errorf("%d clients noticed", failed)
	}
}

// A stop ends the keeper, and with it what a rollback would go back to: the next start
// neither misses it nor offers it. Numbers go on.
func TestStartAfterAStop(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	if res := n.release(n.like("helper"), Request{}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	again := serve(t, n.conf)
	if log := again.log.String(); strings.Contains(log, "is lost") {
		t.Error("something is missed")
	}
	if st := again.s.Status(); st.Current != 3 || len(st.Generations) != 1 {
		t.Errorf("%+v", st)
	}
	if _, err := again.s.Rollback(context.Background()); err == nil {
		t.Error("rolled back to what nobody has")
	}
}

func TestConnectionThatWasThereFirst(t *testing.T) {
	// Accepted by the kernel before any generation is ready: it waits.
	c := conf(t, "serve")
	s, err := New(Options{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	early, err := net.Dial("tcp", c.Listeners[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, nil) }()
	if _, err := ask(early, "/"); err != nil {
		t.Errorf("the early client: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
