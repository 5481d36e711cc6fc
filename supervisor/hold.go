package supervisor

import "time"

// hold leaves a release without a verdict as it is: the candidate has all new
// flows, and the previous generation stays, with its sockets, and takes them
// again at once when the candidate ends or a rollback is asked for. The next
// release that passes ends both.
func (s *Supervisor) hold(r *release) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ofRecord(r)
	if old := s.reserve; old != nil && old.alive() && !old.stopping {
		old.traceEnd(r)
		s.retire(old, r.candidate.recipe.config.Release.DrainTimeout) // one is enough
	}
	s.reserve = nil
	s.closeSplit(r)
	for _, g := range s.generations {
		switch {
		case s.owns(g) || g.stopping || g.leftover():
		case g == r.previous:
			s.reserve = g
		case g.state == Serving: // it had a listener of its own, and one is enough to go back to
			g.traceEnd(r)
			s.retire(g, r.candidate.recipe.config.Release.DrainTimeout)
		}
	}
}

// backToReserve gives all new flows to the generation that was held for the case
// that it is needed. False: there is none. s.mu is held.
func (s *Supervisor) backToReserve() (Result, bool) {
	if s.borrowed != nil || s.keptOnly != nil {
		return Result{}, false // the last release was not of all, and nor is its rollback
	}
	old, current := s.reserve, s.shift.current
	s.reserve = nil
	if old == nil || !old.fit() || old.stopping || current == nil || current == old || s.stopping {
		return Result{}, false
	}
	r := s.instantRollback(old, current)
	s.shift, s.own, s.borrowed = shiftInForce{current: old, salt: newSalt()}, split{}, nil
	s.applyShift()
	s.otherCertificates()
	for _, g := range s.generations {
		if g == current || g.state == Serving && !s.owns(g) && !g.leftover() {
			s.retire(g, current.recipe.config.Release.DrainTimeout)
		}
	}
	s.note()
	s.finish(r, Passed, "")
	return r.result, true
}

// instantRollback is a release that is over as soon as the shift is made. s.mu is held.
func (s *Supervisor) instantRollback(to, from *generation) *release {
	r := &release{cause: "rollback", request: Request{NoVerify: true}, queued: time.Now(), done: make(chan struct{})}
	r.result = Result{
		ID: s.state.NextRelease, Cause: r.cause, Started: r.queued, Stages: []StageResult{},
		Generation: to.id, Previous: from.id,
		Evidence: []string{"the generation before was still there"},
	}
	s.state.NextRelease++
	return r
}
