package supervisor

import (
	"time"

	"golang.org/x/sys/unix"
)

// hearingTime is how long a generation of baton-proxy that has been told to stop
// may take to close its listening sockets, which it does before anything else. It
// counts from the record, so that supervisors that die in turn do not begin it anew; but
// hearMost it has in any case, for on a slow disk the record is older than the signal.
const hearingTime = 2 * time.Second

// wasTold reports whether a generation that was to be told to stop has been: its
// supervisor may have died between the record and the signal. One that listens still
// has heard nothing, and would have neither announced nor ended anything when its
// deadline comes. What another server does when it is told nobody knows: there the
// record counts, for a second signal may close what is open.
func (s *Supervisor) wasTold(g *generation) bool {
	if len(g.stood) == 0 || !g.recipe.config.Proxy.Baton {
		return true
	}
	over := time.NewTimer(max(hearingTime-time.Since(g.toldAt), hearMost))
	defer over.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s.listens(g) {
		select {
		case <-tick.C:
		case <-g.exited:
			return true
		case <-over.C:
			s.log.Warn("a generation that an earlier supervisor was about to stop has not been told", "generation", g.id)
			return false
		}
	}
	return true
}

// listens reports whether a process has one of its listening sockets still.
func (s *Supervisor) listens(g *generation) bool {
	for _, cookies := range g.stood {
		for _, cookie := range cookies {
			if fd, err := g.process.Socket(cookie); err == nil {
				unix.Close(fd)
				return true
			}
		}
	}
	return false
}
