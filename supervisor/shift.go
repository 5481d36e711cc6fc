package supervisor

import (
	"context"
	"fmt"
	"time"

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
	for _, share := range r.ramp() {
		if share >= 1 {
			break
		}
		if err := s.give(ctx, r, float64(share), salt); err != nil {
			return err
		}
		if err := s.openListeners(); err != nil {
			return err
		}
		if err := s.step(ctx, r, &portion{
			hold: func() error { return s.holdBack(r, salt) },
			give: func() error { return s.give(ctx, r, float64(share), salt) },
		}); err != nil {
			return fmt.Errorf("at %v of new flows: %w", share, err)
		}
	}
	if err := s.give(ctx, r, 1, salt); err != nil {
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

// step watches the candidate for as long as a step of the ramp takes.
func (s *Supervisor) step(ctx context.Context, r *release, p *portion) error {
	if r.watch == nil {
		return s.holds(r.candidate)
	}
	return r.watch.step(ctx, p)
}

// give makes the candidate's share of new flows what it says, when the release
// is not paused. One store.
func (s *Supervisor) give(ctx context.Context, r *release, share float64, salt uint32) error {
	for {
		resumed, err := s.giveNow(r, share, salt)
		if resumed == nil {
			return err
		}
		select {
		case <-resumed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.candidate.exited:
		case <-time.After(judge.ReadEvery):
			if err := s.glance(r); err != nil {
				return fmt.Errorf("paused: %w", err)
			}
		}
	}
}

// glance looks at a candidate that keeps its share.
func (s *Supervisor) glance(r *release) error {
	if r.watch == nil {
		return s.holds(r.candidate)
	}
	return r.watch.look()
}

// giveNow gives, or returns what is closed when the release is resumed.
func (s *Supervisor) giveNow(r *release, share float64, salt uint32) (resumed chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := r.candidate
	if !g.alive() {
		return nil, fmt.Errorf("generation %d ended: %s", g.id, g.exit)
	}
	if r.resumed != nil {
		return r.resumed, nil
	}
	s.put(r, share, salt)
	return nil, nil
}

// holdBack gives a candidate no new flows for now, paused or not. One that nobody is
// left to share with keeps them.
func (s *Supervisor) holdBack(r *release, salt uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := r.candidate; !g.alive() {
		return fmt.Errorf("generation %d ended: %s", g.id, g.exit)
	}
	s.log.Warn("the candidate does not answer: it gets no new flows until it does", "release", r.result.ID, "generation", r.candidate.id)
	s.put(r, 0, salt)
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
