package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// A stage is one step of a release. Its undo brings back what was before it,
// also when it was left half done.
type stage struct {
	name string
	do   func(*Supervisor, context.Context, *release) error
	undo func(*Supervisor, context.Context, *release) error
}

// stages is the release, in order. Everything before shift is undone without a
// client noticing; shift is undone by shifting back, since the old generation
// has not stopped. Drain and reap of the old one (drain.go, reap.go) follow a
// release that passed, beside those that come next.
var stages = []stage{
	{"validate", (*Supervisor).validate, nil},
	{"start", (*Supervisor).start, (*Supervisor).dismiss},
	{"probe", (*Supervisor).probe, nil},
	{"shift", (*Supervisor).shiftOver, (*Supervisor).shiftBack},
	{"verify", (*Supervisor).verify, nil},
}

// release is one generation replacing another.
type release struct {
	cause   string
	request Request
	queued  time.Time
	done    chan struct{} // closed when result is final
	abort   context.CancelCauseFunc

	// Owned by the release loop while it runs; result is read-only after done.
	result    Result
	recipe    *recipe                // what the candidate runs; given before validate for a rollback
	candidate *generation            // guarded by Supervisor.mu for readers
	previous  *generation            // who served when it began; nil: nobody
	owners    map[string]*generation // who had listeners with a shift of their own when it began
	fallback  *recipe                // what previous runs, with a handle that outlives it
	watch     *watch                 // from the shift on; nil: it is not watched
	held      string                 // why the verdict is inconclusive, if both generations are to stay
	judged    bool                   // the findings are in the trace
	because   string                 // why it was made, where nobody has asked for it
	root      oteltrace.Span
	span      oteltrace.Span // of the stage that runs, else root; written with Supervisor.mu held

	// Guarded by Supervisor.mu.
	stage   string
	only    []string        // the listeners that it is of; nil: all
	ended   time.Time       // zero while it runs
	wants   steer.Addresses // the listeners that its candidate has or is about to have
	shifted bool            // flows have been given to the candidate
	whole   bool            // all of them: the ramp is over
	resumed chan struct{}   // paused until it is closed; nil: it is not
	endings []Ending        // of generations, while it runs
}

// Release asks for a release and waits for its end. One runs, one waits; a
// request that comes then takes the waiting one's place. If ctx ends first the
// release goes on and Release returns ctx's error.
func (s *Supervisor) Release(ctx context.Context, cause string, req Request) (Result, error) {
	r, err := s.enqueue(cause, req, nil)
	if err != nil {
		return Result{}, err
	}
	return r.wait(ctx)
}

// Rollback goes back to the generation before. A release that runs is aborted,
// which shifts back at once; otherwise what the previous generation ran is
// released again, from the binary and configuration kept with it.
func (s *Supervisor) Rollback(ctx context.Context) (Result, error) {
	s.mu.Lock()
	if r := s.running; r != nil && r.previous != nil {
		r.abort(errors.New("rollback was asked for"))
		s.mu.Unlock()
		return r.wait(ctx)
	}
	for _, back := range []func() (Result, bool){s.takeBack, s.backToReserve} {
		if res, ok := back(); ok {
			s.mu.Unlock()
			return res, nil
		}
	}
	kept, only := s.kept, s.keptOnly
	s.mu.Unlock()
	if kept == nil {
		return Result{}, errors.New("there is no earlier generation to go back to")
	}
	again, err := kept.again()
	if err != nil {
		return Result{}, err
	}
	r, err := s.enqueue("rollback", Request{NoVerify: true, Listeners: only}, again)
	if err != nil {
		again.binary.Close()
		return Result{}, err
	}
	return r.wait(ctx)
}

func (r *release) wait(ctx context.Context) (Result, error) {
	select {
	case <-r.done:
		return r.result, nil
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// enqueue makes a release the waiting one.
func (s *Supervisor) enqueue(cause string, req Request, what *recipe) (*release, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, fmt.Errorf("%w: %w", ErrRefused, errStopping)
	}
	r := &release{cause: cause, request: req, recipe: what, queued: time.Now(), done: make(chan struct{})}
	r.result = Result{ID: s.state.NextRelease, Cause: cause, Started: r.queued, Stages: []StageResult{}}
	s.state.NextRelease++
	if err := s.persist(); err != nil {
		return nil, refused("nothing is released while the state file cannot be written: %v", err)
	}
	if old := s.waiting; old != nil {
		s.finish(old, Superseded, fmt.Sprintf("release %d came later and took its place", r.result.ID))
	}
	s.waiting = r
	s.nudge()
	return r, nil
}

func (s *Supervisor) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// finish makes a result final. s.mu is held.
func (s *Supervisor) finish(r *release, o Outcome, reason string) {
	r.result.Outcome, r.result.ExitCode, r.result.Reason = o, o.ExitCode(), cmp.Or(reason, r.because)
	if r.recipe != nil {
		r.result.Config, r.result.Binary = r.recipe.configPath, r.recipe.binary.Path
	}
	s.outcomes[o]++
	r.ended = time.Now()
	r.result.Ended = r.endings
	s.remember(r.result)
	if r.recipe != nil && r.candidate == nil {
		r.recipe.binary.Close() // no generation owns it
	}
	close(r.done)
}

// releases runs one release after the other until ctx ends.
func (s *Supervisor) releases(ctx context.Context) {
	for {
		r, pause := s.next()
		if r != nil {
			s.run(ctx, r)
			continue
		}
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-s.wake:
		case <-again:
			s.mu.Lock()
			s.pauseOver = true
			s.mu.Unlock()
		case <-ctx.Done():
			s.mu.Lock()
			if r := s.waiting; r != nil {
				s.waiting = nil
				s.finish(r, Refused, errStopping.Error())
			}
			s.mu.Unlock()
			return
		}
	}
}

// next takes the release to run now. A crashed generation is started again
// before anything else; when that has failed, a waiting release goes first, for
// it may be the cure, and the next attempt comes after a pause.
func (s *Supervisor) next() (_ *release, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, 0
	}
	pause = backOff(s.crashes)
	if s.crash != nil && (pause == 0 || s.pauseOver) {
		what, err := s.crash.again()
		if err == nil {
			r := &release{cause: "crash", request: Request{NoVerify: true}, recipe: what, queued: time.Now(), done: make(chan struct{})}
			r.result = Result{ID: s.state.NextRelease, Cause: r.cause, Started: r.queued, Stages: []StageResult{}}
			r.because = s.lastCrash.String()
			s.lastCrash.again = time.Time{}
			s.state.NextRelease++
			s.crashes++
			s.pauseOver = false
			s.begin(r)
			return r, 0
		}
		s.log.Error("start the crashed generation again", "error", err)
	}
	if r := s.waiting; r != nil {
		s.waiting = nil
		s.begin(r)
		return r, 0
	}
	if s.crash == nil {
		return nil, 0
	}
	pause = max(pause, time.Millisecond)
	s.lastCrash.again = time.Now().Add(pause)
	return nil, pause
}

// begin makes a release the running one. s.mu is held.
func (s *Supervisor) begin(r *release) {
	s.running = r
	r.previous, r.owners = s.shift.current, s.owners()
	if len(r.request.Listeners) > 0 {
		r.only = slices.Compact(slices.Sorted(slices.Values(r.request.Listeners)))
		r.previous = s.shiftOf(r.only[0]).current
	}
	defer s.note()
	r.abort = func(error) {}
	if r.previous == nil {
		return
	}
	r.result.Previous = r.previous.id
	var err error
	if r.fallback, err = r.previous.recipe.again(); err != nil {
		s.log.Error("keep what the previous generation runs", "error", err)
	}
}

// backOff is how long to wait before a generation that keeps dying is started
// again: not at all the first time, then doubling from 100 ms to 10 s.
func backOff(crashes int) time.Duration {
	if crashes == 0 {
		return 0
	}
	return min(100*time.Millisecond<<min(crashes-1, 10), 10*time.Second)
}

// run takes a release through the stages.
func (s *Supervisor) run(ctx context.Context, r *release) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, span := s.startTrace(ctx, r)
	s.mu.Lock()
	r.abort = cancel
	s.mu.Unlock()
	log := s.log.With("release", r.result.ID, "cause", r.cause)
	log.Info("release begins", "previous", r.result.Previous)

	outcome, reason := Passed, ""
	for i, st := range stages {
		err := s.runStage(ctx, r, st.name, st.do)
		if err == nil {
			continue
		}
		moved := s.hasShifted(r)
		log.Warn("a stage failed: what was done is undone", "stage", st.name, "error", err)
		undoErr := s.undo(ctx, r, stages[:i+1])
		reason = fmt.Sprintf("%s: %v", st.name, err)
		switch {
		case undoErr != nil:
			outcome, reason = RollbackFailed, fmt.Sprintf("%s; going back failed: %v", reason, undoErr)
		case r.previous == nil:
			outcome = Failed
		case moved:
			outcome = RolledBack
		default:
			outcome = Refused
		}
		break
	}
	switch {
	case outcome != Passed:
	case r.held != "":
		outcome, reason = Inconclusive, r.held
		s.hold(r)
	default:
		s.passed(r)
	}
	s.testify(r)
	s.endTrace(r, outcome, reason)
	span.End() // before anybody hears of the end
	s.reached("release ends")

	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = nil
	s.unserved(r)
	if outcome == Passed {
		s.steering.Rename(r.recipe.config, r.only)
	}
	s.forgetListeners()
	s.note()
	s.finish(r, outcome, reason)
	log.Log(ctx, outcome.level(), "release ended", "outcome", outcome, "generation", r.result.Generation, "previous", r.result.Previous,
		"reason", r.result.Reason, "config", r.result.Config, "binary", r.result.Binary)
}

func (s *Supervisor) hasShifted(r *release) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.shifted
}

// runStage runs one stage, or the undo of one, in a span of its own.
func (s *Supervisor) runStage(ctx context.Context, r *release, name string, do func(*Supervisor, context.Context, *release) error) error {
	s.mu.Lock()
	r.stage = name
	s.mu.Unlock()
	ctx, span := s.startSpan(ctx, r, name)
	begin, evidence := time.Now(), len(r.result.Evidence)
	err := context.Cause(ctx)
	if err == nil {
		err = do(s, ctx, r)
	}
	s.reached(name + " ends")
	result := StageResult{Name: name, Milliseconds: float64(time.Since(begin).Microseconds()) / 1000}
	if err != nil {
		result.Error = err.Error()
	}
	s.endSpan(r, span, name, evidence, err)
	r.result.Stages = append(r.result.Stages, result)
	s.record(r.result)
	return err
}

// undo takes back the stages that ran, the last one first. It is not to be
// aborted: half an undo would be worse than what it undoes.
func (s *Supervisor) undo(ctx context.Context, r *release, ran []stage) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, st := range slices.Backward(ran) {
		if st.undo != nil {
			errs = append(errs, s.runStage(ctx, r, "undo "+st.name, st.undo))
		}
	}
	return errors.Join(errs...)
}

// ramp is the shares the candidate gets, in order.
func (r *release) ramp() []config.Percent {
	switch {
	case r.previous == nil:
		return nil
	case len(r.request.Ramp) > 0:
		return r.request.Ramp
	case r.cause == "rollback" || r.cause == "crash":
		return nil // at once
	}
	return r.recipe.config.Release.Ramp
}
