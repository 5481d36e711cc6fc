// Package release replaces a proxy many times in a row under every kind of
// client, and lets nothing pass: no failed operation, none cut by a drain's
// deadline, no release that ends as it should not.
//
// BATON_RELEASES is the number of releases, instead of each test's own.
package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// releases is the number of releases in a row.
func releases(t *testing.T, usual int) int {
	t.Helper()
	text := os.Getenv("BATON_RELEASES")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BATON_RELEASES=%q is not a number of releases", text)
	}
	return n
}

// TestReleases releases in a row, each with every kind of client in the middle
// of something, and bursts of new connections around each shift.
func TestReleases(t *testing.T) {
	needTools(t)
	n := releases(t, 12)
	run := startRun(t, here, demo.Settings{})
	defer run.finish()
	for range n {
		run.release(t, false)
	}
	run.check(t, n)
}

// TestReleasesWithFullQueues makes sure of what is chance in TestReleases: that
// each shift finds connections in the old generation's accept queue. It is
// stopped from the request to the shift, so that it accepts none.
func TestReleasesWithFullQueues(t *testing.T) {
	needTools(t)
	n := releases(t, 6)
	run := startRun(t, here, demo.Settings{})
	defer run.finish()
	for i := range n {
		if r := run.release(t, true); r.QueuedAtShift.ToAccept == 0 {
			t.Errorf("release %d of %d: nothing was queued at the shift", i+1, n)
		}
	}
	run.check(t, n)
}

// TestReleasesInTakeover is TestReleases where generations share their sockets,
// as they do without BPF.
func TestReleasesInTakeover(t *testing.T) {
	needTools(t)
	n := releases(t, 5)
	run := startRun(t, here, demo.Settings{Steering: "takeover"})
	defer run.finish()
	for range n {
		run.release(t, false)
	}
	run.check(t, n)
}

// run is a node under load.
type run struct {
	node     *demo.Node
	load     *demo.Load
	watch    *demo.Watcher
	tools    *results
	file     string // the candidates' configuration
	mode     string // of steering
	settings demo.Settings
	running  sync.WaitGroup
	stop     context.CancelFunc

	burst   func(over func() bool, connect func(n int))
	windows []demo.Window // of the releases
	// What waited at the old generation at each shift.
	halfOpen, toAccept []int
}

// site is where a run takes place.
type site struct {
	node demo.Place
	// dial and command are what the clients connect and start by.
	dial    func(ctx context.Context, address string) (net.Conn, error)
	command func(name string, args ...string) *exec.Cmd
	// burst has connect begin n connections at a time, all the time, until over.
	burst func(over func() bool, connect func(n int))
	// prepare, if set, has its say before the clients begin.
	prepare func(*demo.Node, *demo.Load)
}

// here is this machine's loopback, where a connection is made at once. One
// burst follows another.
var here = site{
	command: exec.Command,
	burst: func(over func() bool, connect func(n int)) {
		for !over() {
			connect(32)
		}
	},
}

func startRun(t *testing.T, at site, settings demo.Settings) *run {
	t.Helper()
	// At the cap a drain is shortened. Streams of three seconds and releases in
	// a row keep about a dozen generations alive.
	settings.MaxGenerations = 64
	// A client that gets a slow answer when the drain begins may send one more
	// slow request before it is told: six seconds, and longer on a busy machine.
	settings.DrainTimeout = 30 * time.Second
	n := node.Start(t, at.node, settings)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	load := node.Load(t, n)
	load.Dial = at.dial
	if at.prepare != nil {
		at.prepare(n, load)
	}
	load.Slow = 2 * time.Second // as long as the streams, so that no shift finds a kind between two operations
	r := &run{
		node:     n,
		load:     load,
		watch:    &demo.Watcher{Node: n},
		burst:    at.burst,
		file:     file,
		mode:     cmp.Or(settings.Steering, "bpf"),
		settings: settings,
	}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	r.running.Go(func() { r.load.Run(ctx) })
	r.running.Go(func() { r.watch.Run(ctx) })
	r.tools = startTools(ctx, t, &r.running, at, n)
	// Every kind must be in the middle of something before the first shift.
	node.Eventually(t, "the load to get going", func() bool { return r.load.Counts().OK > 250 })
	return r
}

// finish ends the load and returns when every client is done.
func (r *run) finish() {
	r.stop()
	r.running.Wait()
}

// release releases once and fails the test unless it passed. Until the old
// generation has closed its listeners it connects in bursts: at the shift and at
// the close connections get lost. With hold the old generation is stopped from
// the request to the shift, so that they wait in its queue.
func (r *run) release(t *testing.T, hold bool) *demo.Result {
	t.Helper()
	old, known := r.watch.Latest(), len(r.watch.Shifts())
	resume := func() {}
	if hold {
		resume = pause(t, r.node.PID(), old.PIDOf(old.Current))
	}
	began, ended := time.Now(), make(chan struct{})
	var result *demo.Result
	var err error
	go func() {
		defer close(ended)
		result, err = r.node.Release(t.Context(), r.file)
	}()
	over := func() bool {
		select {
		case <-ended:
			return true
		default:
			return len(r.watch.Shifts()) > known
		}
	}
	closed := func() bool {
		select {
		case <-ended:
			if err != nil || result.Outcome != "passed" {
				return true // the old generation goes on: nothing to wait for
			}
		default:
		}
		return over() && r.closed(old.Current)
	}
	var bursts sync.WaitGroup
	for _, kind := range []demo.Kind{demo.HTTPNew, demo.TCPNew} {
		bursts.Go(func() { r.burst(closed, func(n int) { r.load.Burst(kind, n) }) })
	}
	poll(over)
	resume()
	<-ended
	bursts.Wait()
	r.windows = append(r.windows, demo.Window{From: began, To: time.Now()})

	if err != nil {
		t.Fatal(err)
	}
	if result.Outcome != "passed" || result.ExitCode != 0 {
		t.Fatalf("release %d %s with exit code %d: %s", result.ID, result.Outcome, result.ExitCode, result.Reason)
	}
	r.toAccept = append(r.toAccept, result.QueuedAtShift.ToAccept)
	r.halfOpen = append(r.halfOpen, result.QueuedAtShift.HalfOpen)
	return result
}

// closed reports whether a generation has stopped listening: it says that it
// drains, or is gone.
func (r *run) closed(generation int) bool {
	s := r.watch.Latest()
	pid := s.PIDOf(generation)
	return pid == 0 || s.Draining(generation)
}

// pause stops a process of the supervisor and returns what lets it go on.
func pause(t *testing.T, supervisor, pid int) (resume func()) {
	t.Helper()
	p, err := demo.OpenProcess(pid, supervisor)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	return func() {
		if err := errors.Join(p.Continue(), p.Close()); err != nil {
			t.Error(err)
		}
	}
}

// check lets the clients finish and holds what they saw against what must be.
func (r *run) check(t *testing.T, releases int) {
	t.Helper()
	r.finish()
	if status := r.watch.Latest(); status.Steering != r.mode {
		t.Errorf("steering is %q", status.Steering)
	}
	ops := r.load.Ops()
	var shifts []demo.Window
	for _, s := range r.watch.Shifts() {
		shifts = append(shifts, s.Window)
	}
	if len(shifts) != releases {
		t.Errorf("%d shifts seen of %d releases", len(shifts), releases)
	}
	kinds := demo.Summarize(ops, r.windows, shifts, nil)
	if len(kinds) != len(demo.Kinds) {
		t.Errorf("%d kinds of clients did anything, of %d", len(kinds), len(demo.Kinds))
	}
	for _, k := range kinds {
		t.Logf("%-14s %6d ok, %d failed, %d cut, at each shift ≥ %d (at %d of them any); before %.1f / %.1f ms, during %.1f / %.1f ms (p50 / p99)",
			k.Kind, k.OK, k.Failed, k.Cut, k.AtShift, k.Shifts, k.Before.P50, k.Before.P99, k.During.P50, k.During.P99)
		if k.Failed+k.Cut > 0 {
			t.Errorf("%s: %d failed, %d cut", k.Kind, k.Failed, k.Cut)
		}
		if k.Shifts == 0 {
			t.Errorf("%s: no shift found one in the middle of anything", k.Kind)
		}
	}
	logFailures(t, ops, shifts)
	if n := r.watch.Cut(); n > 0 {
		t.Errorf("the supervisor counts %d flows cut", n)
	}
	r.tools.check(t)
	t.Logf("%d releases; connections at the old generation at a shift: %s half open, %s to be accepted",
		releases, spread(r.halfOpen), spread(r.toAccept))
}

// spread sums counts up.
func spread(counts []int) string {
	s := slices.Sorted(slices.Values(counts))
	return fmt.Sprintf("%d to %d (median %d)", s[0], s[len(s)-1], s[len(s)/2])
}

// poll returns when done says so. What it waits for is bounded by the release.
func poll(done func() bool) {
	for !done() {
		time.Sleep(time.Millisecond)
	}
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
