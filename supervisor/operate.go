package supervisor

import (
	"errors"
	"fmt"
	"time"
)

// ErrRefused is wrapped by what an operator asked for and cannot have as things
// stand. Nothing has changed.
var ErrRefused = errors.New("refused")

func refused(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, a...))
}

// Pause keeps the release that runs from giving its candidate a larger share of
// new flows, until Resume. It goes on to be watched: what it fails by shifts it
// back, paused or not.
func (s *Supervisor) Pause() (ReleaseStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running
	switch {
	case r == nil:
		return ReleaseStatus{}, refused("no release runs")
	case r.whole:
		return ReleaseStatus{}, refused("release %d has given generation %d all new flows: there is nothing left to pause", r.result.ID, r.result.Generation)
	case r.resumed == nil:
		r.resumed = make(chan struct{})
		s.log.Info("release paused", "release", r.result.ID)
	}
	return s.releaseStatus(r), nil
}

// Resume lets a release that was paused go on.
func (s *Supervisor) Resume() (ReleaseStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running
	switch {
	case r == nil:
		return ReleaseStatus{}, refused("no release runs")
	case r.resumed == nil:
		return ReleaseStatus{}, refused("release %d is not paused", r.result.ID)
	}
	close(r.resumed)
	r.resumed = nil
	s.log.Info("release resumed", "release", r.result.ID)
	return s.releaseStatus(r), nil
}

// releaseStatus tells where the release that runs stands. s.mu is held.
func (s *Supervisor) releaseStatus(r *release) ReleaseStatus {
	st := ReleaseStatus{ID: r.result.ID, Stage: r.stage, Generation: r.result.Generation, Listeners: r.only, Paused: r.resumed != nil}
	f := s.shift
	if r.only != nil {
		f = s.shiftOf(r.only[0])
	}
	switch {
	case r.candidate == nil:
	case f.current == r.candidate:
		st.Weight = 1
	case f.other == r.candidate:
		st.Weight = f.weight
	}
	return st
}

// ending is when a drain is over.
type ending struct {
	end, lastCall *time.Timer
	goodbye       time.Duration // from the last call to the end, at most
	forward       chan struct{} // closed when the end was brought forward
}

func (e *ending) isForward() bool {
	select {
	case <-e.forward:
		return true
	default:
		return false
	}
}

// beginEnding sets the deadline of a drain, once. s.mu is held.
func (g *generation) beginEnding(timeout time.Duration) *ending {
	if g.ending == nil {
		// The deadline first: who has seen the timer finds it past.
		g.deadline = time.Now().Add(timeout)
		e := &ending{end: time.NewTimer(timeout), lastCall: time.NewTimer(timeout), goodbye: killAfter, forward: make(chan struct{})}
		if !g.leftover() && g.recipe.config.Proxy.Baton {
			e.goodbye = lastCallBefore(timeout)
			e.lastCall.Reset(timeout - e.goodbye)
		}
		g.ending = e
	}
	return g.ending
}

// over makes the drain end after so much more time. Supervisor.mu is held.
func (e *ending) over(g *generation, in time.Duration) {
	g.deadline = time.Now().Add(in) // first, as in beginEnding
	e.end.Reset(in)
	e.lastCall.Reset(max(in-e.goodbye, 0))
}

func (e *ending) stop() {
	e.end.Stop()
	e.lastCall.Stop()
}

// Drain brings the end of a generation's drain forward: what it has not finished
// after so much time is closed. One that serves, or may yet, is refused.
func (s *Supervisor) Drain(id uint64, deadline time.Duration) (GenerationStatus, error) {
	if deadline < 0 {
		return GenerationStatus{}, refused("a deadline lies ahead")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		if g.id != id {
			continue
		}
		switch {
		case s.stopping:
			return GenerationStatus{}, refused("the supervisor is stopping")
		case !g.alive():
			return GenerationStatus{}, refused("generation %d has ended", id)
		case g.ending == nil && g.leftover():
			return GenerationStatus{}, refused("generation %d drains when one of this supervisor's serves", id)
		case g == s.reserve:
			return GenerationStatus{}, refused("generation %d is held for the case that it is needed: the next release that passes ends it", id)
		case g.ending == nil && g.state == Serving:
			return GenerationStatus{}, refused("generation %d gets new flows: release another in its place", id)
		case g.ending == nil:
			return GenerationStatus{}, refused("generation %d is %s and does not drain", id, g.state)
		case time.Until(g.deadline) <= deadline:
			return GenerationStatus{}, refused("the drain of generation %d ends in %v already", id, time.Until(g.deadline).Round(100*time.Millisecond))
		}
		s.log.Info("the drain's deadline is brought forward", "generation", id, "in", deadline.String())
		if !g.ending.isForward() {
			close(g.ending.forward)
		}
		g.ending.over(g, deadline)
		return g.status(), nil
	}
	return GenerationStatus{}, refused("no generation %d lives", id)
}
