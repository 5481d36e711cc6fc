package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// pausedAtHalf starts a supervisor and a release that is paused in the instant in which
// its candidate has half of the new flows. The step of the ramp is over then.
func pausedAtHalf(t *testing.T, how string) (*node, *release) {
	t.Helper()
	var n *node
	n = serve(t, conf(t, "serve"), func(o *Options) {
		reached := o.Reached
		o.Reached = func(transition string) {
			reached(transition)
			if transition == "shift to 0.5 stored" && n.s.running.resumed == nil { // Supervisor.mu is held
				n.s.running.resumed = make(chan struct{})
			}
		}
	})
	r, err := n.enqueue(n.like(how, func(c *config.Config) {
		c.Release.DrainTimeout, c.Release.Verify.Window = time.Second, time.Millisecond
	}), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the candidate has half", func() bool { return n.weight() == 0.5 })
	return n, r
}

// weight is the candidate's share of new flows; 0 when no release runs.
func (n *node) weight() float64 {
	if st := n.s.Status().Release; st != nil {
		return st.Weight
	}
	return 0
}

// A candidate that hangs while its release is paused is asked by probes as in any step:
// its share is held back, and it gets it again when it answers, no more than that. Resumed,
// the release goes on.
func TestPausedShareIsHeldBack(t *testing.T) {
	n, r := pausedAtHalf(t, "hang-a-while")
	n.s.patience.Store(int64(time.Minute)) // its probe does not fail before the test lets it answer
	var clients sync.WaitGroup
	defer clients.Wait()
	eventually(t, "its share is held back", func() bool {
		clients.Go(func() { n.get("/") })
		return n.weight() == 0
	})
	if st := n.s.Status().Release; st == nil || !st.Paused {
		t.Errorf("%+v", st)
	}
	for range 20 {
		if got, err := n.get("/"); got != "1" {
			t.Fatalf("a client got %q, %v", got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.conf.RuntimeDir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has its share again", func() bool { return n.weight() == 0.5 })
	if st, err := n.s.Resume(); err != nil || st.Paused {
		t.Errorf("%+v, %v", st, err)
	}
	if res := n.ended(r); res.Outcome != Passed {
		t.Errorf("%+v", res)
	}
}

// One that does not answer is rolled back, paused or not.
func TestPausedCandidateHangs(t *testing.T) {
	n, r := pausedAtHalf(t, "hang-later")
	n.s.patience.Store(int64(time.Second))
	var clients sync.WaitGroup
	defer clients.Wait()
	eventually(t, "the release ends", func() bool {
		clients.Go(func() { n.get("/") })
		return n.s.Status().Release == nil
	})
	if res := n.ended(r); res.Outcome != RolledBack || !strings.Contains(res.Reason, "at 50% of new flows: answers: ") {
		t.Errorf("%+v", res)
	}
	if got, err := n.get("/"); got != "1" {
		t.Errorf("%q, %v", got, err)
	}
}
