package balance

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/tests/node"
)

// flowsUnderTest is how many flows a test of transitions has: 60, or BATON_TEST_FLOWS.
func flowsUnderTest() (n int, long bool) {
	if s := os.Getenv("BATON_TEST_FLOWS"); s != "" {
		n, _ = strconv.Atoi(s)
		return n, true
	}
	return 60, false
}

// checkedReal answers checks by HTTP, as a test says.
type checkedReal struct {
	*real
	checks  atomic.Int64
	passes  func(check int64) bool // set before the checks begin
	healthy atomic.Bool
}

// answerChecks has each real answer checks by HTTP; one that is not healthy, or whose
// test says so, answers that it does not serve.
func (l *lab) answerChecks() []*checkedReal {
	var all []*checkedReal
	for _, r := range l.reals {
		r.health.Close()
		c := &checkedReal{real: r, passes: func(int64) bool { return true }}
		c.healthy.Store(true)
		ln, err := r.host.Listen(fmt.Sprintf("%v:%d", r.host.Addr4, healthPort+1))
		if err != nil {
			l.t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if n := c.checks.Add(1); !c.healthy.Load() || !c.passes(n) {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})}
		go server.Serve(ln)
		l.t.Cleanup(func() { server.Close() })
		all = append(all, c)
	}
	return all
}

// A real that fails a check now and then stays; one that comes back begins with a
// tenth of its weight; one that is drained gets nothing new. None of it ends a flow,
// but that a real which is down loses its own. With BATON_TEST_FLOWS it loses its link
// too, and gets it back.
func TestTransitionsUnderLoad(t *testing.T) {
	n, long := flowsUnderTest()
	if !long {
		n /= 2
	}
	l := newLab(t, 3)
	reals := l.answerChecks()
	health := func(slowStart string) string {
		return fmt.Sprintf("{tcp_port: %d, http_path: /up, interval: 100ms, timeout: 30s, fall: 3, rise: 3, slow_start: %s}", healthPort+1, slowStart)
	}
	l.health = health("1h")
	flapping, sick := reals[0], reals[1]
	flapping.passes = func(check int64) bool { return check%3 == 1 } // two of three fail, never three in a row
	l.start()
	for _, r := range reals {
		l.await(r.name, balancer.Up)
	}
	flows := l.flows(n)
	after := func(transition string) {
		t.Helper()
		l.wantMoving(flows, "")
		t.Logf("%s: 0 of %d flows have ended", transition, len(flows))
	}
	status := func(name string) (s balancer.RealStatus) {
		for _, r := range l.status().Reals {
			if r.Name == name {
				s = r
			}
		}
		return s
	}

	since := flapping.checks.Load()
	node.Eventually(t, "a real fails two of three checks, a dozen of them", func() bool {
		return flapping.checks.Load() > since+12
	})
	after("a real flaps")
	if s := status(flapping.name); s.State != balancer.Up || !s.Since.IsZero() {
		t.Errorf("a real that never fails three checks in a row is %s, since %v", s.State, s.Since)
	}

	if out, code := l.command("drain", flapping.name); code != 0 {
		t.Fatalf("drain: %d, %s", code, out)
	}
	more := l.flows(n / 2)
	if got := len(at(more, flapping.name)); got > 0 {
		t.Errorf("%d of %d new flows go to a drained real", got, len(more))
	}
	flows = append(flows, more...)
	after("a real drains")
	if out, code := l.command("drain", "--undo", flapping.name); code != 0 {
		t.Fatalf("undo: %d, %s", code, out)
	}
	after("and drains no more")

	sick.healthy.Store(false)
	l.await(sick.name, balancer.Down)
	own := len(at(flows, sick.name))
	flows = except(flows, sick.name)
	after(fmt.Sprintf("a real falls, which had %d more", own))
	sick.healthy.Store(true)
	l.await(sick.name, balancer.Starting)
	if s := status(sick.name); s.Share != 0.1 {
		t.Errorf("a real that has just come back gets %v of its weight", s.Share)
	}
	more = l.flows(n)
	t.Logf("of %d new flows a real at the beginning of its slow start gets %d", len(more), len(at(more, sick.name)))
	if got := len(at(more, sick.name)); got > n/2 {
		t.Errorf("a real at the beginning of its slow start gets %d of %d new flows", got, n)
	}
	flows = append(flows, more...)
	after("it starts slowly")
	l.health = health("0s")
	l.config("")
	if out, code := l.command("reload"); code != 0 {
		t.Fatalf("reload: %d, %s", code, out)
	}
	l.await(sick.name, balancer.Up)
	more = l.flows(n)
	if len(at(more, sick.name)) == 0 {
		t.Errorf("a real after its slow start gets none of %d new flows", n)
	}
	flows = append(flows, more...)
	after("and has come to its weight")
	if !long {
		return
	}

	if err := sick.host.Unplug(); err != nil {
		t.Fatal(err)
	}
	l.awaitNot(sick.name, balancer.Up)
	own = len(at(flows, sick.name))
	flows = except(flows, sick.name)
	after(fmt.Sprintf("a real loses its link, which had %d more", own))
	if err := sick.host.Plug(); err != nil {
		t.Fatal(err)
	}
	l.await(sick.name, balancer.Up)
	more = l.flows(n)
	if len(at(more, sick.name)) == 0 {
		t.Errorf("a real whose link is back gets none of %d new flows", n)
	}
	flows = append(flows, more...)
	after("it has its link again")
}

// except is the flows of the other reals.
func except(flows []*flow, real string) (list []*flow) {
	for _, f := range flows {
		if f.real != real {
			list = append(list, f)
		}
	}
	return list
}
