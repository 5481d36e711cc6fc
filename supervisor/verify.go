package supervisor

import (
	"context"
	"errors"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/judge"
)

// verify watches the candidate with all new flows on it, and gives the verdict.
// That no gate was violated is not enough for a pass: each must have been seen.
func (s *Supervisor) verify(ctx context.Context, r *release) error {
	w := r.watch
	if w == nil {
		return s.holds(r.candidate)
	}
	if err := w.shut(func(g *generation, listener string) bool { return g != s.shiftOf(listener).current }); err != nil {
		return err
	}
	if err := w.step(ctx, nil, nil); err != nil {
		return err
	}
	if !s.steering.Chooses() {
		r.result.Evidence = append(r.result.Evidence,
			"the candidate lives and its sockets listen; old and new have accepted from the same queues, and nobody counted which took what")
	}
	if err := w.final(ctx); err != nil {
		return err
	}
	findings := w.Findings()
	if err := w.err(findings); err != nil {
		return err
	}
	if w.conclude(findings) == judge.Pass {
		return nil
	}
	why := "inconclusive: " + judge.Reasons(findings, judge.Unclear)
	switch r.recipe.config.Release.OnInconclusive {
	case config.Rollback:
		return errors.New(why)
	case config.Hold:
		r.held = why
	default:
		s.log.Warn("the release passes, although "+why, "release", r.result.ID)
	}
	return nil
}

// watched reports whether a candidate is to be judged: there is something to go
// back to, and nobody has asked not to look.
func (r *release) watched() bool { return r.previous != nil && !r.request.NoVerify }
