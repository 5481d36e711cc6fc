// Package faults kills what Baton is made of, under load, and counts what
// clients saw of it.
package faults

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/tests/node"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// status asks the supervisor; the generations it lists live.
func status(t *testing.T, n *demo.Node) *demo.Status {
	t.Helper()
	st, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// A supervisor that is killed leaves its generation serving; the next one adopts
// it and releases over it. No client sees it.
func TestSupervisorKilled(t *testing.T) { killSupervisors(t, demo.Settings{}, 3) }

// Where generations share their sockets the next supervisor takes those that it
// finds.
func TestSupervisorKilledInTakeover(t *testing.T) {
	before, after := killSupervisors(t, demo.Settings{Steering: "takeover"}, 1)
	if !slices.Equal(before, after) {
		t.Errorf("the listening sockets were %v and are %v", before, after)
	}
}

// listening names the sockets that listen where the node does, by cookie.
func listening(t *testing.T, n *demo.Node) (cookies []uint64) {
	t.Helper()
	for _, address := range []netip.AddrPort{n.HTTP, n.HTTPS, n.TCP} {
		holders, err := ports.Holders(address, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range holders {
			cookies = append(cookies, h.Cookie)
		}
	}
	return cookies
}

func killSupervisors(t *testing.T, settings demo.Settings, times int) (before, after []uint64) {
	n := node.Start(t, demo.Place{}, settings)
	before = listening(t, n)
	load := node.Under(t, n, func(l *demo.Load) { l.Slow = time.Second })

	for round := range times {
		was := status(t, n)
		n.Kill()
		time.Sleep(300 * time.Millisecond) // nobody is in charge, and traffic goes on
		begin := time.Now()
		if err := n.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		st := status(t, n)
		t.Logf("in charge after %v", time.Since(begin))
		if st.Current != was.Current || len(st.Generations) != len(was.Generations) || st.Generations[0].PID != was.Generations[0].PID {
			t.Errorf("restart %d: was %+v, is %+v", round, was, st)
		}
	}
	after = listening(t, n)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.Release(t.Context(), file)
	if err != nil || res.Outcome != "passed" {
		t.Errorf("a release afterwards: %+v, %v", res, err)
	}
	ok := load.End()
	t.Logf("%d operations, none failed, over %d supervisors killed", ok, times)
	return before, after
}

// A supervisor is replaced while it runs, a release included that is under way:
// the one that asks waits for its end.
func TestSupervisorReplaced(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{})
	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	was := status(t, n)
	if err := n.Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	is := status(t, n)
	if is.PID == was.PID || is.Current != was.Current || is.Generations[0].PID != was.Generations[0].PID {
		t.Errorf("was %+v, is %+v", was, is)
	}
	released := make(chan *demo.Result, 1)
	go func() {
		res, err := n.Release(t.Context(), file)
		if err != nil {
			t.Error(err)
		}
		released <- res
	}()
	node.Eventually(t, "the release to be under way", func() bool { return status(t, n).Release != nil })
	if err := n.Replace(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res := <-released; res == nil || res.ExitCode != 0 {
		t.Errorf("the release under way: %+v", res)
	}
	if st := status(t, n); st.Current != was.Current+1 {
		t.Errorf("generation %d serves after the release", st.Current)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Errorf("a release afterwards: %+v, %v", res, err)
	}
}
