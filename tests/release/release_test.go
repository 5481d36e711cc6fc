// Package release replaces a proxy many times in a row under every kind of
// client, and lets nothing pass: no failed operation, none cut by a drain's
// deadline, no release that ends as it should not.
//
// BATON_RELEASES is the number of releases, 20 without it.
package release

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// need skips the test where something is missing that it cannot do without. In
// CI nothing may be missing.
func need(t *testing.T, there bool, what string) {
	t.Helper()
	switch {
	case there:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

// build compiles the supervisor and the proxy side by side.
func build(t *testing.T) (executable string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "./supervisor/cmd/baton", "./proxy/cmd/baton-proxy")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return filepath.Join(dir, "baton")
}

func startNode(t *testing.T, s demo.Settings) *demo.Node {
	t.Helper()
	need(t, os.Geteuid() == 0, "root")
	node, err := demo.StartNode(t.Context(), build(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of the node: %s", node.LogFile())
			return
		}
		if err := node.Remove(); err != nil {
			t.Error(err)
		}
	})
	return node
}

func TestReleases(t *testing.T) {
	releases := 20
	if text := os.Getenv("BATON_RELEASES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("BATON_RELEASES=%q is not a number of releases", text)
		}
		releases = n
	}
	needTools(t)
	// At the cap a drain is shortened. Streams of three seconds and releases in
	// a row keep about a dozen generations alive.
	node := startNode(t, demo.Settings{MaxGenerations: 64})
	load := &demo.Load{HTTP: node.HTTP.String(), TCP: node.TCP.String(), Slow: 500 * time.Millisecond}
	watch := &demo.Watcher{Node: node}

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { load.Run(ctx) })
	running.Go(func() { watch.Run(ctx) })
	tools := startTools(ctx, t, &running, "http://"+node.HTTP.String())
	finish := func() { stop(); running.Wait() }
	defer finish()

	// Every kind must have clients in the middle of something before the first shift.
	waitFor(t, 10*time.Second, "the load to get going", func() bool { return load.Counts().OK > 500 })

	file, err := node.WriteConfig("candidate", demo.Settings{MaxGenerations: 64})
	if err != nil {
		t.Fatal(err)
	}
	var windows []demo.Window
	queued, halfOpen := 0, 0 // shifts that left connections waiting at the old generation
	for i := range releases {
		began := time.Now()
		result := releaseInBurst(t, node, watch, load, file)
		windows = append(windows, demo.Window{From: began, To: time.Now()})
		if result.Outcome != "passed" || result.ExitCode != 0 {
			t.Fatalf("release %d of %d %s with exit code %d: %s", i+1, releases, result.Outcome, result.ExitCode, result.Reason)
		}
		if result.QueuedAtShift.ToAccept > 0 {
			queued++
		}
		if result.QueuedAtShift.HalfOpen > 0 {
			halfOpen++
		}
		if status := watch.Latest(); status.Steering != "bpf" {
			t.Fatalf("steering is %q", status.Steering)
		}
	}
	finish()

	ops := load.Ops()
	var shifts []demo.Window
	for _, s := range watch.Shifts() {
		shifts = append(shifts, s.Window)
	}
	if len(shifts) != releases {
		t.Errorf("%d shifts seen of %d releases", len(shifts), releases)
	}
	kinds := demo.Summarize(ops, windows, shifts, nil)
	if len(kinds) != len(demo.Kinds) {
		t.Errorf("%d kinds of clients did anything, of %d", len(kinds), len(demo.Kinds))
	}
	for _, k := range kinds {
		t.Logf("%-14s %6d ok, %d failed, %d cut, at each shift ≥ %d; before %.1f / %.1f ms, during %.1f / %.1f ms (p50 / p99)",
			k.Kind, k.OK, k.Failed, k.Cut, k.AtShift, k.Before.P50, k.Before.P99, k.During.P50, k.During.P99)
		if k.Failed+k.Cut > 0 {
			t.Errorf("%s: %d failed, %d cut", k.Kind, k.Failed, k.Cut)
		}
		if k.AtShift == 0 {
			t.Errorf("%s: a shift found none in the middle of anything", k.Kind)
		}
	}
	logFailures(t, ops, shifts)
	if n := watch.Cut(); n > 0 {
		t.Errorf("the supervisor counts %d flows cut", n)
	}
	t.Logf("%d releases; connections waited at the old generation to be accepted at %d shifts, half open at %d", releases, queued, halfOpen)
	if queued+halfOpen == 0 {
		t.Error("nothing was queued at any shift, so none was a test of the queues")
	}
	tools.check(t)
}

// releaseInBurst releases, and from the candidate's start to its shift connects
// so much at once that the shift finds connections in the old generation's queue.
func releaseInBurst(t *testing.T, node *demo.Node, watch *demo.Watcher, load *demo.Load, file string) *demo.Result {
	t.Helper()
	const atOnce = 64
	before := len(watch.Shifts())
	ended := make(chan struct{})
	var bursts sync.WaitGroup
	bursts.Go(func() {
		for kind := demo.HTTPNew; len(watch.Shifts()) == before; {
			select {
			case <-ended:
				return
			default:
			}
			if s := watch.Latest(); s != nil && s.Release != nil && s.Release.Stage != "validate" {
				load.Burst(kind, atOnce)
				if kind == demo.HTTPNew {
					kind = demo.TCPNew
				} else {
					kind = demo.HTTPNew
				}
			} else {
				time.Sleep(time.Millisecond)
			}
		}
	})
	result, err := node.Release(t.Context(), file)
	close(ended)
	bursts.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// logFailures names the first failures, and how far from a shift they began.
func logFailures(t *testing.T, ops []demo.Op, shifts []demo.Window) {
	t.Helper()
	shown := 0
	for _, op := range ops {
		if op.Err == nil {
			continue
		}
		if shown++; shown > 20 {
			return
		}
		var since time.Duration
		for _, s := range shifts {
			if s.From.Before(op.End) {
				since = op.End.Sub(s.From)
			}
		}
		t.Logf("%s from %s, begun %v and ended %v after the last shift: %v", op.Kind, op.Flow.Client,
			(since - op.End.Sub(op.Start)).Round(time.Millisecond), since.Round(time.Millisecond), op.Err)
	}
}

func waitFor(t *testing.T, atMost time.Duration, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(atMost); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", atMost, what)
		}
	}
}
