package supervisor

import (
	"time"

	"github.com/baton-mesh/baton/supervisor/state"
)

// undoInterrupted goes back to the generation before, where it can still serve:
// nobody has seen what the verdict would have been. Where it cannot, the candidate
// stays. s.mu is held.
func (s *Supervisor) undoInterrupted(r *state.Release) {
	var candidate, previous *generation
	for _, g := range s.generations {
		switch {
		case g.leftover():
		case g.id == r.Candidate:
			candidate = g
		case g.id == r.Previous:
			previous = g
		}
	}
	result := Result{ID: r.ID, Cause: r.Cause, Started: r.Started, Generation: r.Candidate, Previous: r.Previous, Stages: []StageResult{}}
	back := previous != nil && previous.alive() && !previous.told && previous.state != Draining
	moved := candidate != nil && s.inShift(candidate)
	again := &release{candidate: candidate, previous: previous, only: r.Listeners, owners: s.byID(r.Own)}
	if r.Listeners != nil {
		base := s.shift.current // who has the others takes these, should the one before have ended
		back = back || base != nil && base != candidate
	}
	// Out of the shift again, it may be on its way back: it has flows, and is drained.
	fresh := candidate != nil && (candidate.state == Starting || candidate.state == Ready) && !moved
	switch {
	case candidate == nil || fresh:
		result.Outcome = Refused
	case back:
		s.giveBack(again)
		s.applyShift()
		result.Outcome = RolledBack
	case candidate.told || candidate.state == Draining:
		result.Outcome = Failed
	default:
		s.divide(again, 1, newSalt())
		s.settle()
		s.applyShift()
		candidate.state = Serving
		result.Outcome = Inconclusive
	}
	if back && previous != nil && s.owns(previous) {
		previous.state = Serving
	}
	if known := s.historyOf(r.ID); known != nil {
		result.TraceID, result.Stages, result.Evidence = known.TraceID, known.Stages, known.Evidence
	}
	result.Reason, result.ExitCode = "the supervisor ended in the middle of it", result.Outcome.ExitCode()
	s.log.Warn("a release was interrupted", "release", r.ID, "outcome", result.Outcome, "generation", r.Candidate, "previous", r.Previous)
	s.outcomes[result.Outcome]++
	s.remember(result)
	switch {
	case candidate == nil || result.Outcome == Inconclusive || candidate.state == Draining:
	case fresh:
		s.dismissLeft(candidate)
	default:
		candidate.endsIn = s.cutOff[r.ID]
		candidate.state, candidate.deadline = Draining, time.Now().Add(candidate.recipe.config.Release.DrainTimeout)
	}
}

// dismissLeft ends a candidate that no shift has named. Where queues are shared it
// may have flows all the same. s.mu is held.
func (s *Supervisor) dismissLeft(g *generation) {
	if s.steering.Chooses() {
		g.stopping = true
		g.kill()
		return
	}
	g.state, g.deadline = Draining, time.Now().Add(g.recipe.config.Release.DrainTimeout)
}

// sortOut sees to generations whose part nobody has any more: a candidate that its
// release was not yet known to have, and one that was held for a rollback. s.mu is held.
func (s *Supervisor) sortOut() {
	for _, g := range s.generations {
		switch {
		case g.leftover() || g.stopping || s.owns(g):
		case g.state == Starting || g.state == Ready:
			s.dismissLeft(g)
		case g.state != Serving:
		case s.reserve == nil:
			s.reserve = g
		default:
			g.state, g.deadline = Draining, time.Now().Add(g.recipe.config.Release.DrainTimeout)
		}
	}
}
