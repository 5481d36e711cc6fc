package supervisor

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/judge"
)

// atLength reports whether the gates are tested at full length: make gates.
func atLength() bool { return os.Getenv("BATON_TEST_GATES") != "" }

// bornAt is when this process began, for a generation that turns bad by time.
var bornAt = time.Now()

// fineFor is how many requests a bad generation answers before it is bad: the
// probes, and some of a client's.
const fineFor = probesEach + 4

// misbehave makes a handler that turns bad as said, and reports whether it knows
// how. bad is asked for each request but the first.
func misbehave(how string) (http.Handler, bool) {
	var seen atomic.Int64
	var leaked []*os.File
	abort := func(w http.ResponseWriter, linger int) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			c.(*net.TCPConn).SetLinger(linger)
			c.Close()
		}
	}
	bad := map[string]func(n int64, w http.ResponseWriter, r *http.Request) bool{
		"reset-all": func(n int64, w http.ResponseWriter, r *http.Request) bool { abort(w, 0); return true },
		"reset-one": func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				abort(w, 0)
			}
			return n == 0
		},
		// Ends every connection in order, with nothing on it.
		"say-nothing": func(n int64, w http.ResponseWriter, r *http.Request) bool { abort(w, -1); return true },
		// The same at one address alone.
		"say-nothing-at-3": func(n int64, w http.ResponseWriter, r *http.Request) bool {
			at := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).IP.Equal(net.IPv4(127, 0, 0, 3))
			if at {
				abort(w, -1)
			}
			return at
		},
		"exit-after-3s": func(int64, http.ResponseWriter, *http.Request) bool {
			if time.Since(bornAt) > 3*time.Second {
				os.Exit(3)
			}
			return false
		},
		"exit-later":   func(int64, http.ResponseWriter, *http.Request) bool { os.Exit(3); return true },
		"hang-later":   func(int64, http.ResponseWriter, *http.Request) bool { select {} },
		"hang-a-while": func(int64, http.ResponseWriter, *http.Request) bool { awaitFile("go"); return false },
		"leak": func(int64, http.ResponseWriter, *http.Request) bool {
			for range 32 {
				if f, err := os.Open("/dev/null"); err == nil {
					leaked = append(leaked, f)
				}
			}
			return false
		},
	}[how]
	if bad == nil {
		return nil, false
	}
	_, number, _ := strings.Cut(os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), "baton.generation=")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := seen.Add(1) - fineFor - 1; n >= 0 && bad(n, w, r) {
			return
		}
		fmt.Fprint(w, number)
	}), true
}

// watched is a configuration whose steps are long enough for anything to show.
func watched(c *config.Config) {
	c.Release.Verify.Window = 30 * time.Second
	c.Release.Ramp = []config.Percent{0.5, 1}
	if atLength() {
		c.Release.Ramp[0] = 0.05 // as one would have it; it takes longer
	}
}

// violation runs a release that must be shifted back for the gate named.
func (n *node) violation(c *config.Config, gate string) Result {
	n.t.Helper()
	res := n.release(c, Request{})
	v := res.Verdict
	if res.Outcome != RolledBack || v == nil || v.Judgement != judge.Fail || !strings.Contains(res.Reason, gate+": ") {
		n.t.Fatalf("%+v, verdict %+v", res, v)
	}
	if st := n.s.Status(); st.Current != res.Previous {
		n.t.Errorf("generation %d is current after a rollback to %d", st.Current, res.Previous)
	}
	n.t.Logf("%s: %.0f ms after the shift, %d flows harmed: %s", res.Outcome, v.Milliseconds, v.Harmed, res.Reason)
	if !atLength() {
		return res
	}
	var ended []Ending
	eventually(n.t, "the candidate ends", func() bool {
		all := n.s.Results()
		ended = all[len(all)-1].Ended
		return len(ended) > 0
	})
	n.t.Logf("in all %d flows were harmed", ended[0].Harmed)
	if ended[0].Harmed > mostHarmed {
		n.t.Errorf("%d flows were harmed, want %d at most", ended[0].Harmed, mostHarmed)
	}
	return res
}

// mostHarmed bounds the flows that a candidate may harm which fails at once, at 5 % of
// new flows.
const mostHarmed = 20

// bad is each way to be bad, with the gate that is there for it, in random order; at
// full length five times.
func bad(all map[string]string, atLengthAlone map[string]string) iter.Seq2[string, string] {
	return func(yield func(how, gate string) bool) {
		times := 1
		if atLength() {
			times = 5
			maps.Copy(all, atLengthAlone)
		}
		for range times {
			for how, gate := range all {
				if !yield(how, gate) {
					return
				}
			}
		}
	}
}

// Candidates that turn bad when they have flows: each is found by the gate that
// is there for it, and the previous generation has all new flows again.
func TestBadGenerations(t *testing.T) {
	for how, gate := range bad(map[string]string{
		"reset-one":   "resets",
		"reset-all":   "resets",
		"say-nothing": "errors",
		"exit-later":  "alive",
		"leak":        "resources",
		"hang-later":  "answers",
	}, map[string]string{"exit-after-3s": "alive"}) {
		t.Run(how, func(t *testing.T) {
			n := serve(t, conf(t, "serve", watched))
			stop := n.clients()
			if how == "hang-later" && !atLength() {
				// What it does not answer need not be waited for as long as in earnest.
				go func() {
					eventually(t, "the candidate has flows", func() bool {
						st := n.s.Status()
						return st.Release != nil && st.Release.Weight > 0
					})
					n.s.patience.Store(int64(200 * time.Millisecond))
				}()
			}
			n.violation(n.like(how, func(c *config.Config) { c.Release.DrainTimeout = time.Second }), gate)
			stop()
			if _, err := n.get("/"); err != nil {
				t.Errorf("after the rollback: %v", err)
			}
		})
	}
}

// A candidate that answers nobody gets no new flows while it is asked, and its share
// again when it has answered.
func TestShareIsHeldBack(t *testing.T) {
	n := serve(t, conf(t, "serve", watched))
	r, err := n.enqueue(n.like("hang-a-while", func(c *config.Config) { c.Release.DrainTimeout = time.Second }), Request{})
	if err != nil {
		t.Fatal(err)
	}
	hasShare := func() bool {
		st := n.s.Status()
		return st.Release != nil && st.Release.Weight > 0
	}
	eventually(t, "the candidate has a share", hasShare)
	n.s.patience.Store(int64(time.Minute)) // its probe does not fail before the test lets it answer
	var clients sync.WaitGroup
	defer clients.Wait()
	eventually(t, "its share is held back", func() bool {
		clients.Go(func() { n.get("/") })
		return !hasShare()
	})
	for range 50 {
		if got, err := n.get("/"); got != "1" {
			t.Fatalf("a client got %q, %v", got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.conf.RuntimeDir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has its share again", hasShare)
	eventually(t, "it answers", func() bool {
		got, err := n.get("/")
		return err == nil && got == "2"
	})
	if _, err := n.s.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	if res := n.ended(r); res.Outcome != RolledBack {
		t.Errorf("%+v", res)
	}
}

// inVerify starts a release and returns when all new flows are the candidate's.
func (n *node) inVerify(c *config.Config) *release {
	n.t.Helper()
	r, err := n.enqueue(c, Request{})
	if err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "the candidate is verified", func() bool {
		st := n.s.Status()
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return st.Release != nil && st.Release.Stage == "verify" && r.watch != nil
	})
	return r
}

func (n *node) ended(r *release) Result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	res, err := r.wait(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	return res
}

func long(c *config.Config) { c.Release.Verify.Window = 10 * time.Second }

// inStart begins a release whose candidate is ready when the test says so.
func (n *node) inStart(t *testing.T) (r *release, ready func()) {
	t.Helper()
	patient := func(c *config.Config) { c.Release.ReadyTimeout = time.Minute }
	r, err := n.enqueue(n.like("mute-at-first", patient), Request{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the candidate runs", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return r.candidate != nil && r.stage == "start"
	})
	return r, func() {
		if err := os.WriteFile(filepath.Join(n.conf.RuntimeDir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A flow that the kernel did not count makes the release inconclusive, never a
// pass.
func TestUncountedFlowIsInconclusive(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, ready := n.inStart(t)
	// Its sockets lose their mark: what comes to them is counted for nobody.
	if !n.s.kernel.Begin(1<<40, r.candidate.sockets, false).Whole() {
		t.Fatal("they keep it")
	}
	ready()
	res := n.ended(r)
	if res.Outcome != Inconclusive || res.ExitCode != 4 || !strings.Contains(res.Reason, "were not counted") {
		t.Fatalf("%+v, %+v", res, res.Verdict)
	}
}

// What follows when there is no verdict is as configured.
func TestOnInconclusive(t *testing.T) {
	for policy, want := range map[string]struct {
		outcome Outcome
		code    int
		current uint64
	}{
		config.Hold:     {Inconclusive, 4, 2},
		config.Rollback: {RolledBack, 3, 1},
		config.Pass:     {Passed, 0, 2},
	} {
		t.Run(policy, func(t *testing.T) {
			n := serve(t, conf(t, "serve"))
			n.loseAccount(1)
			res := n.release(n.like("serve", func(c *config.Config) { c.Release.OnInconclusive = policy }), Request{})
			if res.Outcome != want.outcome || res.ExitCode != want.code || res.Verdict == nil || res.Verdict.Judgement != judge.Inconclusive {
				t.Fatalf("%+v, %+v", res, res.Verdict)
			}
			if st := n.s.Status(); st.Current != want.current {
				t.Errorf("generation %d is current, want %d", st.Current, want.current)
			}
			if policy != config.Hold {
				return
			}
			if st := n.s.Status(); len(st.Generations) != 2 || st.Generations[0].State != Serving {
				t.Errorf("held: %+v", st.Generations)
			}
			back, err := n.s.Rollback(t.Context())
			if err != nil || back.Outcome != Passed || back.Generation != 1 {
				t.Errorf("rollback: %+v, %v", back, err)
			}
			if got, err := n.get("/"); err != nil || got != "1" {
				t.Errorf("after the rollback: generation %q, %v", got, err)
			}
			eventually(t, "the held candidate ends", func() bool { return len(n.s.Status().Generations) == 1 })
		})
	}
}

// loseAccount makes an account as of a generation that was adopted without it.
func (n *node) loseAccount(id uint64) {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	for _, g := range n.s.generations {
		if g.id == id {
			g.flows.End()
			g.flows = n.s.kernel.Begin(id, g.sockets, true)
		}
	}
}

// A release after a held one ends both that the held one left.
func TestReleaseAfterAHeldOne(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	n.loseAccount(1)
	if res := n.release(n.conf, Request{}); res.Outcome != Inconclusive {
		t.Fatalf("%+v, %+v", res, res.Verdict)
	}
	if one, two := n.generation(1), n.generation(2); !one.Reserve || two.Reserve {
		t.Errorf("in reserve: %+v, %+v", one, two)
	}
	if res := n.release(n.conf, Request{}); res.Outcome != Passed || res.Generation != 3 {
		t.Fatalf("%+v, %+v", res, res.Verdict)
	}
	eventually(t, "one generation is left", func() bool { return len(n.s.Status().Generations) == 1 })
}

// The same again is never shifted back.
func TestSameAgainPasses(t *testing.T) {
	releases := 3
	if atLength() {
		releases = 100
	}
	n := serve(t, conf(t, "serve"))
	stop := n.load()
	for range releases {
		res := n.release(n.like("serve", func(c *config.Config) { c.Release.Ramp = []config.Percent{0.05, 1} }), Request{})
		if res.Outcome != Passed || res.Verdict == nil || res.Verdict.Judgement != judge.Pass || res.Verdict.Harmed != 0 {
			t.Fatalf("%+v, %+v", res, res.Verdict)
		}
	}
	if ok, failed := stop(); failed != 0 || ok == 0 {
		t.Errorf("%d requests answered, %d failed", ok, failed)
	}
}
