package supervisor

import (
	"context"
	"fmt"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// verify watches the candidate with all new flows on it. What it can say so far
// is what the kernel knows: the candidate lives, holds its sockets, and no flow
// went anywhere but to it.
func (s *Supervisor) verify(ctx context.Context, r *release) error {
	if err := s.watchCandidate(ctx, r); err != nil {
		return err
	}
	if !s.steering.chooses() {
		r.result.Evidence = append(r.result.Evidence,
			"the candidate lives and its sockets listen; old and new have accepted from the same queues, and nobody counted which took what")
		return nil
	}
	now, err := s.baseline(r.candidate)
	if err != nil {
		return err
	}
	given := now.own[reuseport.Current] + now.own[reuseport.Ramped] - r.before.own[reuseport.Current] - r.before.own[reuseport.Ramped]
	r.result.Evidence = append(r.result.Evidence, fmt.Sprintf(
		"the candidate lives, holds its sockets and was chosen %d times; the sink %d times",
		given, now.none[reuseport.Sink]-r.before.none[reuseport.Sink]))
	return nil
}
