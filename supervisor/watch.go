package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/baton-mesh/baton/supervisor/judge"
)

const (
	// settleFor bounds the wait for counts that are on their way: a handshake
	// that the client has finished and the kernel has not.
	settleFor = 2 * time.Second
	// auditFor bounds the search for moments at which the books agree.
	auditFor = 20 * time.Second
)

// watch reads what is to be known of a candidate from the shift to the verdict, and asks
// it by probes. The case takes the readings, and what follows from them.
type watch struct {
	*judge.Case
	s                   *Supervisor
	r                   *release
	candidate, previous *generation

	asking chan error // a probe that is under way says here how it ended; nil: none is
	asked  time.Time  // when the last one began
}

// watchFrom begins the watch, before the first flow.
func (s *Supervisor) watchFrom(r *release) (*watch, error) {
	party := func(g *generation) judge.Party { return judge.Party{ID: g.id, Config: g.recipe.config} }
	w := &watch{Case: judge.Open(party(r.candidate), party(r.previous), s.kernel.Counts()), s: s, r: r, candidate: r.candidate, previous: r.previous}
	// Who gets nothing, whatever this release does.
	if err := w.shut(func(g *generation, listener string) bool {
		f := s.shiftOf(listener)
		return g != f.current && g != f.other && (g != w.candidate || !r.isOf(listener))
	}); err != nil {
		return nil, err
	}
	return w, w.read()
}

// step lets the window of a step pass and returns an error as soon as a gate is
// violated. Of a candidate that has new flows for good p is nil. Where the release is
// paused, the step lasts until resumed is closed instead.
//
// One that hangs is not known for it until probes have failed, which takes seconds, and
// meanwhile each flow that it gets is lost. One that is sound answers a probe in
// milliseconds. So who has not answered by the next reading gets nothing until it does.
func (w *watch) step(ctx context.Context, p *portion, resumed <-chan struct{}) error {
	end := time.Now().Add(w.r.recipe.config.Release.Verify.Window)
	window := time.NewTimer(time.Until(end))
	defer window.Stop()
	if resumed != nil {
		window.Stop()
	}
	tick := time.NewTicker(judge.ReadEvery)
	defer tick.Stop()
	probing, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		if w.asking != nil { // what it found so late counts no more
			<-w.asking
			w.asking = nil
		}
	}()
	for {
		over := false // this event is the end of the step
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.candidate.exited:
		case <-tick.C:
		case err := <-w.asking:
			w.asking = nil
			if ctx.Err() != nil { // it is not the candidate's that there was no answer
				return context.Cause(ctx)
			}
			w.Asked(err)
		case <-resumed:
			resumed, end, over = nil, time.Now(), true
		case <-window.C:
			over = true
		}
		if err := w.look(); err != nil {
			return err
		}
		doubt := w.asking != nil || w.Doubtful(w.asked)
		switch {
		case doubt:
			w.probe(probing)
			if over { // the step does not end in doubt: it goes on until a probe has said
				window.Reset(judge.ReadEvery)
			}
			if p != nil && p.held.IsZero() && time.Since(w.asked) >= judge.ReadEvery {
				if err := p.hold(); err != nil {
					return err
				}
			}
		case p != nil && !p.held.IsZero():
			end = end.Add(time.Since(p.held)) // without flows there was nothing to watch
			if err := p.giveAgain(); err != nil {
				return err
			}
			if resumed == nil {
				window.Reset(time.Until(end))
			}
		case over:
			return nil
		}
	}
}

// look takes a reading and asks every gate.
func (w *watch) look() error {
	if err := w.read(); err != nil {
		return err
	}
	return w.err(w.Findings())
}

// err is a violation, and closes the verdict on it.
func (w *watch) err(findings []judge.Finding) error {
	if judge.Judge(findings) != judge.Fail {
		return nil
	}
	w.conclude(findings)
	return errors.New(judge.Reasons(findings, judge.Violated))
}

// conclude writes the verdict down.
func (w *watch) conclude(findings []judge.Finding) judge.Judgement {
	w.r.result.Verdict = w.Verdict(findings)
	return w.r.result.Verdict.Judgement
}

// probe begins to ask the candidate, unless it is being asked.
func (w *watch) probe(ctx context.Context) {
	if w.asking != nil || !w.candidate.alive() {
		return
	}
	done := make(chan error, 1)
	w.asking, w.asked = done, time.Now()
	go func() { done <- w.s.askEach(ctx, w.candidate) }()
}

// final asks the candidate once more, through its public addresses, and with
// that the account itself: a probe is a flow, and it must have been counted. Then
// it waits for a moment at which the books agree, listener by listener.
func (w *watch) final(ctx context.Context) error {
	for w.Hears() {
		err := w.s.askEach(ctx, w.candidate)
		if ctx.Err() != nil { // it is not the candidate's that there was no answer
			return context.Cause(ctx)
		}
		w.Asked(err)
		if err == nil {
			break
		}
	}
	var looked time.Time
	for begun := time.Now(); ; {
		past := time.Since(begun)
		known := w.Audit(w.candidate.listenersOf(), w.balances) || past > auditFor
		if known || time.Since(looked) >= judge.ReadEvery {
			if err := w.look(); err != nil {
				return err
			}
			looked = time.Now()
		}
		if known && (w.UnseenProbes() == 0 || past > settleFor) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(queuePoll):
		}
	}
}

// holds asks for a release that is not watched whether the candidate is where
// it was put.
func (s *Supervisor) holds(g *generation) error {
	if !g.alive() {
		return fmt.Errorf("generation %d ended: %s", g.id, s.exitOf(g))
	}
	in, all, err := s.inSlot(g)
	if err == nil && in < all {
		err = fmt.Errorf("generation %d has given up %d of its %d listening sockets", g.id, all-in, all)
	}
	return err
}
