package supervisor

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// listens is one more listener.
func listens(name, address string) config.Listener {
	return config.Listener{Name: name, Address: address, Protocol: config.HTTP, Workers: 1, WorkerChoice: config.ByHash, Backlog: 1024}
}

// has makes a configuration with these listeners beside the first.
func has(more ...config.Listener) func(*config.Config) {
	return func(c *config.Config) { c.Listeners = append(slices.Clone(c.Listeners[:1]), more...) }
}

// answers asks at an address on a new connection.
func answers(address, path string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, path)
}

func (n *node) wantNobodyAt(address string) {
	n.t.Helper()
	if got, err := answers(address, "/"); !errors.Is(err, syscall.ECONNREFUSED) {
		n.t.Errorf("%s: %q, %v; want connection refused", address, got, err)
	}
}

func (n *node) wantAnswer(address, want string) {
	n.t.Helper()
	if got, err := answers(address, "/"); got != want || err != nil {
		n.t.Errorf("%s: %q, %v; want %q", address, got, err, want)
	}
}

func (n *node) wantListeners(want ...string) {
	n.t.Helper()
	var got []string
	eventually(n.t, fmt.Sprint("the listeners are ", want), func() bool {
		got = nil
		for _, l := range n.s.Status().Listeners {
			if l.Closed {
				return false
			}
			got = append(got, l.Name+" "+l.Address)
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// Listeners come, move, change their name and their workers, and go, and no
// client of the one that stays notices. What is taken out finishes what it has.
func TestListenersComeAndGo(t *testing.T) {
	n := serve(t, conf(t, "serve", func(c *config.Config) { c.Release.DrainTimeout, c.Release.ReadyTimeout = time.Minute, time.Minute }))
	stop := n.load()
	here := "web " + n.addr
	at := func() string { return fmt.Sprintf("127.0.0.2:%d", lowPort(t)) }
	a, b := at(), at()
	pass := func(c *config.Config) {
		t.Helper()
		if res := n.release(c, Request{Ramp: []config.Percent{0.5, 1}}); res.Outcome != Passed {
			t.Fatalf("%+v", res)
		}
	}
	n.wantNobodyAt(a)
	pass(n.like("serve", has(listens("more", a))))
	n.wantAnswer(a, "2")
	n.wantListeners("more "+a, here)

	pass(n.like("serve", has(listens("more", b)))) // it moves
	n.wantAnswer(b, "3")
	n.wantNobodyAt(a)
	n.wantListeners("more "+b, here)

	named := listens("other", b) // it is renamed, with more workers
	named.Workers, named.Backlog = 3, 64
	pass(n.like("serve", has(named)))
	n.wantAnswer(b, "4")
	n.wantListeners("other "+b, here)

	slow := make(chan error, 1)
	conn, err := net.Dial("tcp", b)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go func() {
		_, err := ask(conn, "/slow")
		slow <- err
	}()
	pass(n.like("serve"))
	eventually(t, "it is closed", func() bool {
		return !slices.ContainsFunc(n.s.Status().Listeners, func(l ListenerStatus) bool { return l.Name == "other" && !l.Closed })
	})
	n.wantNobodyAt(b)
	if err := <-slow; err != nil {
		t.Errorf("a request of the listener that was taken out: %v", err)
	}
	n.wantListeners(here)
	n.wantNobodyAt(b)
	if ok, failed := stop(); ok == 0 || failed > 0 {
		t.Errorf("%d requests failed, %d did not", failed, ok)
	}
}

// A release that fails leaves the listeners as they were: what it adds is gone
// again, what it takes out still serves.
func TestFailedReleaseLeavesListeners(t *testing.T) {
	a, b := fmt.Sprintf("127.0.0.2:%d", lowPort(t)), fmt.Sprintf("127.0.0.3:%d", lowPort(t))
	n := serve(t, conf(t, "serve", has(listens("more", a)), func(c *config.Config) { c.Release.ReadyTimeout = time.Minute }))
	was := []string{"more " + a, "web " + n.addr}
	for how, want := range map[string]Outcome{"die-unready": Refused, "die-at-probe": Refused, "hang-up": RolledBack} {
		res := n.release(n.like(how, has(listens("more", b)), func(c *config.Config) { c.Release.Verify.Window = 3 * time.Second }), Request{})
		if res.Outcome != want {
			t.Errorf("%s: %+v", how, res)
		}
		n.wantNobodyAt(b)
		n.wantAnswer(a, "1")
		n.wantListeners(was...)
	}
	// And one that would hide the other is refused.
	if res := n.release(n.like("serve", has(listens("more", fmt.Sprintf("0.0.0.0:%d", listens("", a).AddrPort().Port())))), Request{}); res.Outcome != Refused {
		t.Errorf("%+v", res)
	}
	n.wantListeners(was...)
}

// A rollback brings listeners back, and takes those away that it does not know.
func TestRollbackBringsListenersBack(t *testing.T) {
	a, b := fmt.Sprintf("127.0.0.2:%d", lowPort(t)), fmt.Sprintf("127.0.0.3:%d", lowPort(t))
	n := serve(t, conf(t, "serve", has(listens("more", a)), func(c *config.Config) { c.Release.ReadyTimeout = time.Minute }))
	if res := n.release(n.like("serve", has(listens("less", b))), Request{}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	n.wantListeners("less "+b, "web "+n.addr)
	eventually(t, "the first has gone", func() bool { return n.generation(1) == nil })
	n.wantNobodyAt(a)
	if res, err := n.s.Rollback(t.Context()); err != nil || res.Outcome != Passed {
		t.Fatalf("%+v, %v", res, err)
	}
	n.wantAnswer(a, "3")
	n.wantListeners("more "+a, "web "+n.addr)
	n.wantNobodyAt(b)
}
