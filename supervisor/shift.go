package supervisor

import (
	"context"
	"fmt"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/judge"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// shiftOver moves new flows to the candidate: by the steps of the ramp, each
// with its evidence, and then all of them.
func (s *Supervisor) shiftOver(ctx context.Context, r *release) error {
	if r.watched() {
		var err error
		if r.watch, err = s.watchFrom(r); err != nil {
			return err
		}
		if err := r.watch.err(r.watch.Findings()); err != nil {
			return err // before anything has moved
		}
	}
	s.newPhase(r)
	salt := newSalt() // one for the whole ramp
	var has *portion  // nil: nothing yet
	for _, share := range r.ramp() {
		if share >= 1 {
			break
		}
		next := &portion{s: s, r: r, share: share, salt: salt}
		if err := s.give(ctx, next, has); err != nil {
			return err
		}
		if err := s.openListeners(); err != nil {
			return err
		}
		has = next
		if err := s.step(ctx, r, has, nil); err != nil {
			return fmt.Errorf("at %v of new flows: %w", share, err)
		}
	}
	if err := s.give(ctx, &portion{s: s, r: r, share: 1, salt: salt}, has); err != nil {
		return err
	}
	if err := s.openListeners(); err != nil {
		return err
	}
	if r.previous != nil {
		// What had not been accepted when new flows turned away: it is the
		// previous generation's to serve, and the drain waits for it.
		q, err := s.queueLengths(r.previous.socketsOf(r.only))
		if err != nil {
			return err
		}
		r.result.QueuedAtShift = q
	}
	// Those who came when nobody was there, and the last of them who are still
	// on their way to the sink.
	if r.previous == nil || !r.previous.fit() {
		if err := s.steering.Fence(); err != nil {
			return err
		}
	}
	s.handOver()
	return s.steering.EmptySinks()
}

// step watches the candidate for as long as a step of the ramp takes, or until resumed is
// closed. p is what it has of new flows.
func (s *Supervisor) step(ctx context.Context, r *release, p *portion, resumed <-chan struct{}) error {
	if r.watch != nil {
		return r.watch.step(ctx, p, resumed)
	}
	for resumed != nil { // nobody looks at it but for its end
		if err := s.holds(r.candidate); err != nil {
			return err
		}
		select {
		case <-resumed:
			resumed = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.candidate.exited:
		case <-time.After(judge.ReadEvery):
		}
	}
	return s.holds(r.candidate)
}

// give makes the candidate's share of new flows the next one, when the release is not
// paused. While it is, the candidate is watched with what it has, as in any step: who
// pauses looks at it for minutes.
func (s *Supervisor) give(ctx context.Context, next, has *portion) error {
	for {
		resumed, err := next.giveUnlessPaused()
		if resumed == nil {
			return err
		}
		if err := s.step(ctx, next.r, has, resumed); err != nil {
			if has == nil {
				return fmt.Errorf("paused: %w", err)
			}
			return fmt.Errorf("paused at %v of new flows: %w", has.share, err)
		}
	}
}

// portion is a candidate's share of new flows in a step of the ramp, which is held back
// while the candidate is in doubt.
type portion struct {
	s     *Supervisor
	r     *release
	share config.Percent
	salt  uint32    // of the ramp
	held  time.Time // since when it is held back; zero: it is given
}

// giveUnlessPaused gives the share, by one store, or returns what is closed when the
// release is resumed.
func (p *portion) giveUnlessPaused() (resumed chan struct{}, err error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if err := p.r.candidate.runs(); err != nil || p.r.resumed != nil {
		return p.r.resumed, err
	}
	p.s.put(p.r, float64(p.share), p.salt)
	return nil, nil
}

// hold gives the candidate no new flows for now. One that nobody is left to share with
// keeps them.
func (p *portion) hold() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if err := p.r.candidate.runs(); err != nil {
		return err
	}
	p.s.log.Warn("the candidate does not answer: it gets no new flows until it does", "release", p.r.result.ID, "generation", p.r.candidate.id)
	p.s.put(p.r, 0, p.salt)
	p.held = time.Now()
	return nil
}

// giveAgain ends a hold, paused or not: it is the share that the release was paused at.
func (p *portion) giveAgain() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if err := p.r.candidate.runs(); err != nil {
		return err
	}
	p.s.put(p.r, float64(p.share), p.salt)
	p.held = time.Time{}
	return nil
}

// runs is an error if the generation has ended. Supervisor.mu is held.
func (g *generation) runs() error {
	if !g.alive() {
		return fmt.Errorf("generation %d ended: %s", g.id, g.exit)
	}
	return nil
}

// put makes a share the one in force. s.mu is held.
func (s *Supervisor) put(r *release, share float64, salt uint32) {
	r.shifted, r.whole = true, share >= 1
	r.candidate.state = Serving
	s.divide(r, share, salt)
	s.applyShift()
	s.reached(fmt.Sprintf("shift to %g stored", share))
	s.note()
	s.reached(fmt.Sprintf("shift to %g noted", share))
	if share >= 1 || r.previous == nil {
		r.event(trace.EventShifted)
	} else {
		r.event(trace.EventRampStep, trace.RampShare.Float64(share))
	}
}

// shiftBack gives all new flows to the previous generation again.
func (s *Supervisor) shiftBack(_ context.Context, r *release) error {
	// What killed the one may have killed the other, whose end is being seen to:
	// flows that went back to it would find nobody.
	if old := r.previous; r.shifted && old != nil && old.process.Ended(0) {
		select {
		case <-old.exited:
		case <-s.abandon:
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.shifted {
		return nil
	}
	old := r.previous
	s.giveBack(r)
	if s.shift.current == nil {
		if old == nil {
			return nil // nobody served before, nobody does now
		}
		if old.alive() {
			return fmt.Errorf("generation %d has given up its listening sockets", old.id)
		}
		return fmt.Errorf("generation %d has ended too: %s", old.id, old.exit)
	}
	s.applyShift()
	r.event(trace.EventShiftBack)
	return nil
}

// leave takes a generation that has ended out of the shift. s.mu is held.
func (s *Supervisor) leave(g *generation) {
	left := s.shift.without(g)
	for name, f := range s.own {
		if f.without(g) {
			s.own[name], left = f, true
		}
	}
	if !left {
		return
	}
	s.settle()
	s.applyShift()
}
