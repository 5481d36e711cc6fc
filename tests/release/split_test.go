package release

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// TestSplitReleases releases one listener after the other, and now and then all, under
// every kind of client, those of datagrams among them: nobody notices, neither at the
// listener that moves nor at those that stay. Only with BATON_RELEASES.
func TestSplitReleases(t *testing.T) {
	if os.Getenv("BATON_RELEASES") == "" {
		t.Skip("takes a quarter of a minute for four releases: BATON_RELEASES=4")
	}
	needTools(t)
	n := releases(t, 4)
	run := startRun(t, here, demo.Settings{Steering: "bpf", Datagrams: true})
	defer run.finish()
	owners := map[string]int{}
	for i := range n {
		of := []string{[]string{"edge", "dgram", "web", "", "raw", "edge"}[i%6]}
		if of[0] == "" {
			of = nil
		}
		result := run.releaseOf(t, of)
		st, err := run.node.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range st.Listeners {
			name := l.Name
			if name == "edge.udp" || name == "dgram.udp" {
				name = name[:len(name)-len(".udp")]
			}
			if of == nil || name == of[0] {
				owners[name] = result.Generation
			}
			if want := max(owners[name], 1); l.Generation != want {
				t.Errorf("release %d, of %v: listener %s is of generation %d, want %d", i+1, of, l.Name, l.Generation, want)
			}
		}
	}
	run.finish()
	ops := run.load.Ops()
	kinds := demo.Summarize(ops, run.windows, nil, nil)
	for _, k := range kinds {
		t.Logf("%-14s %6d ok, %d failed, %d cut; before %.1f / %.1f ms, during %.1f / %.1f ms (p50 / p99)",
			k.Kind, k.OK, k.Failed, k.Cut, k.Before.P50, k.Before.P99, k.During.P50, k.During.P99)
		if k.Failed+k.Cut > 0 {
			t.Errorf("%s: %d failed, %d cut", k.Kind, k.Failed, k.Cut)
		}
	}
	logFailures(t, ops, nil)
	if n := run.watch.Cut(); n > 0 {
		t.Errorf("the supervisor counts %d flows cut", n)
	}
	run.tools.check(t)
	t.Logf("%d releases, %d kinds of clients", n, len(kinds))
}

// releaseOf releases some listeners, in two steps, under bursts of new connections,
// and fails the test unless it passed.
func (r *run) releaseOf(t *testing.T, listeners []string) *demo.Result {
	t.Helper()
	began, ended := time.Now(), make(chan struct{})
	over := func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	var bursts sync.WaitGroup
	for _, kind := range []demo.Kind{demo.HTTPNew, demo.TCPNew} {
		bursts.Go(func() { r.burst(over, func(n int) { r.load.Burst(kind, n) }) })
	}
	result, err := r.node.ReleaseOf(t.Context(), r.file, "50%,100%", listeners...)
	close(ended)
	bursts.Wait()
	r.windows = append(r.windows, demo.Window{From: began, To: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != "passed" || result.ExitCode != 0 {
		t.Fatalf("release %d of %v %s with exit code %d: %s", result.ID, listeners, result.Outcome, result.ExitCode, result.Reason)
	}
	return result
}
