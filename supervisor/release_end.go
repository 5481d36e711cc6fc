package supervisor

// passed makes the candidate the generation of record and sends the previous
// one to drain, and with it what an earlier supervisor left, who gave up its
// sockets, and who was held for a verdict that did not come.
func (s *Supervisor) passed(r *release) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ofRecord(r)
	s.closeSplit(r)
	for _, g := range s.generations {
		spent := g.state == Serving && !s.owns(g)
		if (spent || g == s.reserve || g.leftover() || g.unfit.Load()) && !g.stopping {
			g.traceEnd(r)
			s.retire(g, r.candidate.recipe.config.Release.DrainTimeout)
		}
	}
	s.reserve = nil
}

// ofRecord makes the candidate the generation that a later rollback goes back
// to, or from. s.mu is held.
func (s *Supervisor) ofRecord(r *release) {
	if s.crash != nil {
		s.crash.binary.Close()
		s.crash = nil
	}
	if r.cause != "crash" {
		s.crashes = 0
	}
	if r.fallback != nil {
		s.keepRecipe(r.fallback, r.only)
		r.fallback = nil
	}
	s.otherCertificates()
}

// unserved starts the previous generation again if the release failed and took
// the last one new flows could go to with it. s.mu is held.
func (s *Supervisor) unserved(r *release) {
	if r.fallback == nil {
		return
	}
	if s.shift.current == nil && s.crash == nil && !s.stopping {
		s.log.Error("nobody serves: starting again what the previous generation ran", "generation", r.previous.id)
		s.crash, r.fallback = r.fallback, nil
		s.nudge()
		return
	}
	r.fallback.binary.Close()
}

// testify adds to a release what was found of the generation that crashed: the one
// that it starts again, or its own candidate.
func (s *Supervisor) testify(r *release) {
	s.mu.Lock()
	var dead []*generation
	if r.cause == "crash" && s.crashed != nil {
		dead, s.crashed = append(dead, s.crashed), nil
	}
	if g := r.candidate; g != nil && !g.alive() {
		dead = append(dead, g)
	}
	s.mu.Unlock()
	for _, g := range dead {
		<-g.exited // its ledger has been read for the last time
		r.result.Evidence = append(r.result.Evidence, g.testimony...)
	}
}
