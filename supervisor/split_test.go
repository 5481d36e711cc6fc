package supervisor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// three starts a node with the listeners web, a and b.
func three(t *testing.T) *node {
	a, b := fmt.Sprintf("127.0.0.2:%d", lowPort(t)), fmt.Sprintf("127.0.0.3:%d", lowPort(t))
	return serve(t, conf(t, "serve", has(listens("a", a), listens("b", b)), func(c *config.Config) {
		c.Release.ReadyTimeout, c.Release.DrainTimeout = time.Minute, time.Minute
	}))
}

// wantOwners asks each listener who answers, and the status who should.
func (n *node) wantOwners(web, a, b uint64) {
	n.t.Helper()
	for i, want := range []uint64{web, a, b} {
		l := n.conf.Listeners[i]
		n.wantAnswer(l.Address, fmt.Sprint(want))
		for _, st := range n.s.Status().Listeners {
			if st.Name == l.Name && st.Generation != want {
				n.t.Errorf("status: listener %s is of generation %d, want %d", l.Name, st.Generation, want)
			}
		}
	}
}

// wantLiving waits until these generations live and no others.
func (n *node) wantLiving(want ...uint64) {
	n.t.Helper()
	var got []uint64
	eventually(n.t, fmt.Sprint("those that live are ", want), func() bool {
		got = nil
		for _, g := range n.s.Status().Generations {
			got = append(got, g.ID)
		}
		return slices.Equal(got, want)
	})
}

func (n *node) pass(req Request) Result {
	n.t.Helper()
	res := n.release(n.conf, req)
	if res.Outcome != Passed {
		n.t.Fatalf("%+v", res)
	}
	return res
}

func of(names ...string) Request { return Request{Listeners: names, Ramp: []config.Percent{0.5, 1}} }

// Each listener belongs to the generation that it was last released for, and a
// generation without any drains. No client notices.
func TestListenersAreReleasedAlone(t *testing.T) {
	n := three(t)
	stop := n.load()
	n.pass(of("a"))
	n.wantOwners(1, 2, 1)
	n.wantLiving(1, 2)
	if st := n.s.Status(); st.Current != 1 || !slices.Equal(st.Generations[0].Listeners, []string{"web", "b"}) || !slices.Equal(st.Generations[1].Listeners, []string{"a"}) {
		t.Errorf("%+v", st.Generations)
	}
	n.pass(of("b"))
	n.wantOwners(1, 2, 3)
	n.wantLiving(1, 2, 3)
	n.pass(of("a"))
	n.wantOwners(1, 4, 3)
	n.wantLiving(1, 3, 4)
	n.pass(of("web")) // generation 1 has nothing left
	n.wantOwners(5, 4, 3)
	n.wantLiving(3, 4, 5)
	if res := n.release(n.conf, of("web", "a")); res.Outcome != Refused || !strings.Contains(res.Reason, "one after the other, or all") {
		t.Errorf("%+v", res)
	}
	n.pass(Request{Ramp: []config.Percent{0.5, 1}}) // all
	n.wantOwners(6, 6, 6)
	n.wantLiving(6)
	if ok, failed := stop(); ok == 0 || failed > 0 {
		t.Errorf("%d requests failed, %d did not", failed, ok)
	}
}

func TestReleaseOfSomeListenersIsRefused(t *testing.T) {
	n := three(t)
	for want, c := range map[string]*config.Config{
		"there is no listener nobody": n.conf,
		"listener a would be removed": n.like("serve", func(c *config.Config) { c.Listeners = c.Listeners[:1:1] }),
		"listener more would be added": n.like("serve", func(c *config.Config) {
			c.Listeners = append(slices.Clone(c.Listeners), listens("more", "127.0.0.9:1"))
		}),
		"listener a would move from 12": n.like("serve", func(c *config.Config) {
			c.Listeners = slices.Clone(c.Listeners)
			c.Listeners[1].Address = "127.0.0.9:1"
		}),
		"listener a would begin or cease": n.like("serve", func(c *config.Config) {
			c.Listeners = slices.Clone(c.Listeners)
			c.Listeners[1].Protocol, c.Listeners[1].IdleTimeout = config.UDP, time.Minute
		}),
	} {
		name := "web"
		if strings.Contains(want, "nobody") {
			name = "nobody"
		}
		if res := n.release(c, of(name)); res.Outcome != Refused || !strings.Contains(res.Reason, want) {
			t.Errorf("%s: %+v", want, res)
		}
	}
	n.wantOwners(1, 1, 1)
}

// A candidate that fails gives its listeners back to whoever had them.
func TestFailedReleaseOfSomeListeners(t *testing.T) {
	n := three(t)
	n.pass(of("a"))
	for _, names := range [][]string{{"a"}, {"web"}, {"a"}, nil} {
		res := n.release(n.like("hang-up", func(c *config.Config) { c.Release.Verify.Window = 3 * time.Second }), of(names...))
		if res.Outcome != RolledBack {
			t.Fatalf("%v: %+v", names, res)
		}
		n.wantOwners(1, 2, 1)
	}
	n.wantLiving(1, 2)
}

// A rollback gives the listeners back at once where those who had them serve others
// still; else what had them is released again, for them alone.
func TestRollbackOfSomeListeners(t *testing.T) {
	n := three(t)
	n.pass(of("a"))
	back := func(generation uint64) {
		t.Helper()
		if res, err := n.s.Rollback(t.Context()); err != nil || res.Outcome != Passed || !slices.Equal(res.Listeners, []string{"a"}) {
			t.Fatalf("%+v, %v", res, err)
		}
		n.wantOwners(1, generation, 1)
	}
	back(1)
	n.wantLiving(1)
	back(3) // of the rollback: what generation 2 ran
	n.wantLiving(1, 3)
	n.pass(of("a"))
	n.wantLiving(1, 4)
	back(5) // generation 3 has ended
	n.wantLiving(1, 5)
}

// Whose generation dies goes to another that serves: the listeners of one that
// had some to who has the others, and those to the youngest that has some.
func TestOwnerOfAListenerDies(t *testing.T) {
	n := three(t)
	n.pass(of("a"))
	syscall.Kill(n.generation(2).PID, syscall.SIGKILL)
	n.wantLiving(1)
	n.wantOwners(1, 1, 1)
	n.pass(of("b"))
	n.pass(of("a"))
	syscall.Kill(n.generation(1).PID, syscall.SIGKILL)
	n.wantLiving(3, 4)
	n.wantOwners(4, 4, 3)
	syscall.Kill(n.generation(3).PID, syscall.SIGKILL)
	n.wantLiving(4)
	n.wantOwners(4, 4, 4)
	syscall.Kill(n.generation(4).PID, syscall.SIGKILL) // now nobody is left
	eventually(t, "it is started again", func() bool { st := n.s.Status(); return st.Current == 5 && st.Release == nil })
	n.wantOwners(5, 5, 5)
}

// The budget of errors compares the candidate with who had its listener, at that
// listener: that flows of another fail excuses nothing.
func TestErrorsOfAnotherListenerExcuseNothing(t *testing.T) {
	a, b := fmt.Sprintf("127.0.0.2:%d", lowPort(t)), fmt.Sprintf("127.0.0.3:%d", lowPort(t))
	n := serve(t, conf(t, "say-nothing-at-3", has(listens("a", a), listens("b", b)), func(c *config.Config) {
		c.Release.ReadyTimeout = time.Minute
	}))
	var done atomic.Bool
	var clients sync.WaitGroup
	for _, address := range []string{a, a, a, b, b, b} {
		clients.Go(func() {
			for !done.Load() {
				answers(address, "/") // some fail
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer clients.Wait()
	defer done.Store(true)
	res := n.release(n.like("say-nothing", func(c *config.Config) { c.Release.Verify.Window = 30 * time.Second }), of("a"))
	if res.Outcome != RolledBack || !strings.Contains(res.Reason, "errors: ") {
		t.Errorf("%+v", res)
	}
}

// A flow that reaches the candidate at a listener that the release is not of is
// found, though the candidate has others.
func TestMisroutedFlowOfAListenerIsFound(t *testing.T) {
	n := three(t)
	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Minute }), of("a"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is watched", func() bool { st := n.s.Status().Release; return st != nil && st.Weight == 0.5 })
	by := n.s.steering.(*steer.BPF)
	all, own := by.InForce()
	word := own["a"]
	word.Current = word.Other
	own["b"] = word
	by.Shift(all, own)
	if got, err := answers(n.conf.Listeners[2].Address, "/"); got != "2" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	res, _ := r.wait(context.Background())
	if res.Outcome != RolledBack || !strings.Contains(res.Reason, "1 flows of listener b reached generation 2") {
		t.Errorf("%+v", res)
	}
	n.wantOwners(1, 1, 1)
}
