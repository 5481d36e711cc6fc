package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// The exit codes of `baton release` that the scenario meets.
const (
	exitPassed     = 0
	exitRolledBack = 3
	exitRefused    = 5
)

const (
	steady      = 4 * time.Second // of load before the first release
	betweenThem = time.Second
	stormSize   = 50
)

// step is one release of the scenario, or several at once.
type step struct {
	name     string
	settings Settings
	requests int   // how many at the same time
	exits    []int // the first is expected at least once, the others are allowed
	kill     bool  // the candidate dies right after the shift
}

// steps is the scenario, in order.
func (s Scenario) steps() []step {
	all := []step{
		{name: "good 1", requests: 1, exits: []int{exitPassed}},
		{name: "good 2", requests: 1, exits: []int{exitPassed}},
		{name: "good 3", requests: 1, exits: []int{exitPassed}},
		{name: "never ready", requests: 1, exits: []int{exitRefused},
			settings: Settings{Command: []string{s.Executable, "demo", NeverReadyCommand}, ReadyTimeout: time.Second}},
		// The window is long, so that the death falls into it on a slow machine too.
		{name: "dies after shift", requests: 1, exits: []int{exitRolledBack}, kill: true,
			settings: Settings{VerifyWindow: 5 * time.Second}},
		{name: fmt.Sprintf("storm of %d", stormSize), requests: stormSize, exits: []int{exitPassed, exitRefused}},
	}
	for i := range all {
		all[i].settings.Steering, all[i].settings.Datagrams = s.Steering, s.datagrams()
	}
	return all
}

// datagrams reports whether there are clients of HTTP/3 and UDP, whose flows
// generations that share their sockets could not keep.
func (s Scenario) datagrams() bool { return s.Steering != "takeover" }

// NeverReadyCommand is the subcommand of `baton demo` that stands in for a proxy
// that never becomes ready.
const NeverReadyCommand = "never-ready"

// Scenario is `baton demo`.
type Scenario struct {
	// Executable is the baton binary; its proxy is beside it.
	Executable string
	// Steering is how the node steers: bpf if it is empty, or takeover.
	Steering string
	// Given reads, of the node with a runtime directory, which slot the latest datagram
	// of each flow of UDP was given to. Required where there are datagrams.
	Given func(runtimeDir string) (map[Flow]int, error)
	// Pins is where a supervisor with this runtime directory pins what it loads. Required.
	Pins func(runtimeDir string) string
	// Progress gets what happens, as it happens. Terminal says that it can
	// refresh a line.
	Progress io.Writer
	Terminal bool
}

// run is a scenario under way.
type run struct {
	node     *Node
	load     *Load
	watch    *Watcher
	progress *progress
	meter    meter // of progress
	began    time.Time

	report   Report
	releases []Window
	death    *Death
	given    func(runtimeDir string) (map[Flow]int, error)
}

var errInterrupted = errors.New("interrupted")

// Run plays the scenario. An error means that it could not be played to its
// end; whether what it showed is as it should be is in the report.
func (s Scenario) Run(ctx context.Context) (_ *Report, err error) {
	if err := removeLeft(s.Pins); err != nil {
		fmt.Fprintln(s.Progress, "what an earlier demo has left:", err)
	}
	node, err := StartNode(ctx, s.Executable, Place{}, Settings{Steering: s.Steering, Datagrams: s.datagrams()})
	if err != nil {
		return nil, err
	}
	load, err := node.Load()
	if err != nil {
		return nil, errors.Join(err, node.Stop())
	}
	r := &run{
		node:  node,
		load:  load,
		watch: &Watcher{Node: node},
		began: time.Now(),
		given: s.Given,
	}
	r.report.Problems = []string{}
	r.progress = &progress{terminal: s.Terminal, out: s.Progress, line: r.line}

	err = r.play(ctx, s.steps())
	if ctx.Err() != nil {
		return nil, errors.Join(errInterrupted, node.abandon())
	}
	if stopErr := node.Stop(); err == nil && stopErr != nil {
		r.problem("%v", stopErr)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (log: %s)", err, node.LogFile())
	}
	r.sumUp()
	r.report.Seconds = time.Since(r.began).Seconds()
	if !r.report.Passed {
		r.problem("the log is in %s", node.LogFile())
		return &r.report, nil
	}
	return &r.report, node.Remove()
}

// play runs the load, and the steps under it. When it returns both have ended.
func (r *run) play(ctx context.Context, steps []step) error {
	loadCtx, stopLoad := context.WithCancel(ctx)
	restCtx, stopRest := context.WithCancel(ctx)
	var load, rest sync.WaitGroup
	load.Go(func() { r.load.Run(loadCtx) })
	rest.Go(func() { r.watch.Run(restCtx) })
	rest.Go(func() { r.progress.run(restCtx) })
	defer func() {
		stopLoad()
		load.Wait()
		stopRest()
		rest.Wait()
	}()

	r.progress.say("load on %s, %s and %s", r.node.HTTP, r.node.HTTPS, r.node.TCP)
	if err := sleep(ctx, steady); err != nil {
		return err
	}
	for _, s := range steps {
		if err := r.step(ctx, s); err != nil {
			return fmt.Errorf("release %s: %w", s.name, err)
		}
		if err := sleep(ctx, betweenThem); err != nil {
			return err
		}
	}
	stopLoad()
	load.Wait()
	return r.waitDrained(ctx)
}

// step asks for the releases of s and compares what came of them with what
// should have.
func (r *run) step(ctx context.Context, s step) error {
	file, err := r.node.WriteConfig("candidate", s.settings)
	if err != nil {
		return err
	}
	before, err := r.node.Status(ctx)
	if err != nil {
		return err
	}
	began, shifts := time.Now(), len(r.watch.Shifts())
	results, errs := make([]*Result, s.requests), make([]error, s.requests)
	var asking sync.WaitGroup
	for i := range s.requests {
		asking.Go(func() { results[i], errs[i] = r.node.Release(ctx, file) })
	}
	slot := -1 // of the process that was killed
	if s.kill {
		killCtx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if slot, err = r.killAfterShift(killCtx, shifts); err != nil {
			r.problem("%s: %v", s.name, err)
		}
	}
	asking.Wait()
	if slot >= 0 && r.node.UDP.IsValid() {
		given, err := r.given(r.node.runtimeDir())
		if err != nil {
			r.problem("%s: %v", s.name, err)
		}
		r.death.Given(given, slot)
	}
	r.releases = append(r.releases, Window{began, time.Now()})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := r.node.Status(ctx)
	if err != nil {
		return err
	}
	report, why := s.judge(results, before.Current, after.Current)
	for _, w := range why {
		r.problem("%s: %s", s.name, w)
	}
	r.report.Steering = after.Steering
	r.report.Releases = append(r.report.Releases, report)
	r.progress.say("release %-16s %s; generation %d serves", s.name, report.outcomes(), after.Current)
	return nil
}

// judge says what is not as expected of a step, given the current generation
// before and after it.
func (s step) judge(results []*Result, before, after int) (ReleaseReport, []string) {
	report, why := ReleaseReport{Name: s.name}, []string(nil)
	slices.SortFunc(results, func(a, b *Result) int { return a.ID - b.ID })
	want, met := before, false
	for _, res := range results {
		if !slices.Contains(s.exits, res.ExitCode) {
			why = append(why, fmt.Sprintf("release %d %s with exit code %d: %s", res.ID, res.Outcome, res.ExitCode, res.Reason))
		}
		met = met || res.ExitCode == s.exits[0]
		if res.ExitCode == exitPassed {
			want = res.Generation
		}
		report.count(res)
		if len(res.Stages) > 0 {
			report.Stages, report.Reason = res.Stages, res.Reason
		}
	}
	slices.SortFunc(report.Outcomes, func(a, b Outcome) int { return a.ExitCode - b.ExitCode })
	if !met {
		why = append(why, fmt.Sprintf("none ended with exit code %d", s.exits[0]))
	}
	// Latest wins: whoever asked last must have run.
	if last := results[len(results)-1]; last.ExitCode != s.exits[0] {
		why = append(why, fmt.Sprintf("the last request, release %d, was %s: %s", last.ID, last.Outcome, last.Reason))
	}
	if after != want {
		why = append(why, fmt.Sprintf("status says that generation %d serves, not %d", after, want))
	}
	report.Expected = len(why) == 0
	return report, why
}

func (r *ReleaseReport) count(res *Result) {
	for i, o := range r.Outcomes {
		if o.Outcome == res.Outcome && o.ExitCode == res.ExitCode {
			r.Outcomes[i].Count++
			return
		}
	}
	r.Outcomes = append(r.Outcomes, Outcome{res.Outcome, res.ExitCode, 1})
}

// killAfterShift waits for the shift after the first n, and until the new
// generation has accepted some connections of each kind, and kills it. It returns
// the slot that the process had.
func (r *run) killAfterShift(ctx context.Context, n int) (slot int, err error) {
	for len(r.watch.Shifts()) <= n {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return -1, fmt.Errorf("no shift: %w", err)
		}
	}
	if err := sleep(ctx, 300*time.Millisecond); err != nil {
		return -1, err
	}
	of := r.watch.Shifts()[n]
	slot = r.watch.Latest().slotOf(of.Generation)
	r.death, err = Kill(of.PID, r.node.PID(), r.node.HTTP, r.node.HTTPS, r.node.TCP)
	if err != nil {
		return -1, err
	}
	r.death.Generation = of.Generation
	if r.death.Flows() == 0 {
		return slot, errors.New("the process owned no connection when it was killed, so nothing was shown")
	}
	r.progress.say("killed process %d, which owned %d connections", r.death.PID, r.death.Flows())
	return slot, nil
}

// waitDrained waits until only the current generation is left, for longer than
// any drain may last.
func (r *run) waitDrained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		s, err := r.node.Status(ctx)
		if err != nil {
			return fmt.Errorf("wait for the drains: %w", err)
		}
		old := s.beside()
		if len(old) == 0 {
			if r.node.UDP.IsValid() {
				r.report.Datagrams = s.Datagrams()
			}
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			r.problem("generations %v still live after all clients have gone", old)
			return nil
		}
	}
}

// sumUp fills in the report from what the clients recorded.
func (r *run) sumUp() {
	ops := r.load.Ops()
	var shifts []Window
	for _, s := range r.watch.Shifts() {
		shifts = append(shifts, s.Window)
	}
	r.report.Clients = Summarize(ops, r.releases, shifts, r.death)
	killed := 0
	for _, k := range r.report.Clients {
		killed += k.Killed
		if k.Cut > 0 {
			r.problem("%s: %d cut by the drain's deadline", k.Kind, k.Cut)
		}
	}
	if r.death != nil {
		r.report.Killed = &KilledReport{PID: r.death.PID, Flows: r.death.Flows(), Failed: killed}
	}
	if n := r.watch.Cut(); n > 0 {
		r.problem("the supervisor counts %d flows cut by a drain's deadline", n)
	}
	const shown = 10
	failures := 0
	for _, op := range ops {
		if op.Failed() && !r.death.Explains(op) {
			if failures++; failures <= shown {
				r.problem("%s from %s after %v: %v", op.Kind, op.Flow.Client, op.End.Sub(op.Start).Round(time.Millisecond), op.Err)
			}
		}
	}
	if failures > shown {
		r.problem("… and %d more failures", failures-shown)
	}
	r.report.Passed = len(r.report.Problems) == 0
}

func (r *run) problem(format string, args ...any) {
	r.report.Problems = append(r.report.Problems, fmt.Sprintf(format, args...))
}

// sleep waits, or returns early with the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
