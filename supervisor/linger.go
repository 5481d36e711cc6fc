package supervisor

import (
	"errors"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/account"
)

// lingerPoll is how often the open flows of a generation are counted; a reading
// takes some 10 µs a listener.
const lingerPoll = 100 * time.Millisecond

// linger (docs/decisions/018) leaves a generation that gets no new flows alone
// until its clients have left, at most for release.linger: many servers close
// idle connections when they are told to stop, under clients that may just be
// sending. It reports whether there was anything to wait for. timeout is that of
// the drain that follows.
func (s *Supervisor) linger(g *generation, timeout time.Duration) bool {
	if g.leftover() || !s.steered(g) || g.recipe.config.Release.Linger == 0 {
		return false
	}
	most := g.recipe.config.Release.Linger
	s.mu.Lock()
	forward := g.ending.forward
	if !g.ending.isForward() {
		g.ending.over(g, most+timeout)
	}
	s.mu.Unlock()
	over := time.NewTimer(most)
	defer over.Stop()
	tick := time.NewTicker(lingerPoll)
	defer tick.Stop()
	for !s.isStopping() {
		counts, err := g.flows.Read()
		if err == nil && g.flows.Whole() && account.Sum(counts).Open() == 0 {
			return true
		}
		if err != nil && !errors.Is(err, account.ErrNoFlows) {
			s.log.Error("count the open flows of a generation", "generation", g.id, "error", err)
		}
		select {
		case <-tick.C:
		case <-over.C:
			s.log.Warn("clients have stayed longer than release.linger: what their connections see when the server stops is its own doing",
				"generation", g.id, "flows", openFlows(counts))
			return true
		case <-forward:
			return true
		case <-g.exited:
			return true
		case <-g.squeezed:
			return true
		case <-s.hurried:
			return true
		}
	}
	return true
}

// isStopping reports whether the supervisor ends: nobody waits then for clients
// who may leave.
func (s *Supervisor) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

func openFlows(counts map[string]flows.Counts) uint64 { return account.Sum(counts).Open() }
