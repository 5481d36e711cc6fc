package supervisor

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/supervisor/steer"
)

const (
	// containEvery is how often it is asked whether serving generations still
	// hold their places. Flows that come meanwhile wait in the sink or go to the
	// other generation of the shift; a reading takes a few µs a listener.
	containEvery = time.Second
	// stalledFor is how many readings in a row an accept queue must not have
	// shrunk before it is asked who has the socket: that is a walk through /proc.
	stalledFor = 2
)

// contain looks after generations that serve beside any release, and after a state file
// that could not be written. One that has
// shut its listening sockets down, or closed them so that only our copies are
// left, is alive and serves nobody.
func (s *Supervisor) contain(ctx context.Context) {
	tick := time.NewTicker(containEvery)
	defer tick.Stop()
	stalls, said := stalls{}, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.noteAgain()
		s.restoreDir(&said)
		serving := s.serving()
		stalls.forget(serving)
		for _, g := range serving {
			left, err := s.left(g, stalls)
			if err != nil {
				s.log.Error("look for a generation's sockets", "generation", g.id, "error", err)
			} else if left > 0 {
				s.gaveUp(g, left)
			}
		}
	}
}

// left counts the sockets that a generation has given up.
func (s *Supervisor) left(g *generation, stalls stalls) (int, error) {
	in, all, err := s.inSlot(g)
	if err != nil || in < all {
		return all - in, err
	}
	queued, err := s.steering.Queued(g.sockets)
	if err != nil {
		return 0, err
	}
	abandoned := 0
	for _, conf := range g.recipe.config.Listeners {
		for _, sock := range g.sockets[conf.Name] {
			if !stalls.stalled(g, sock.Cookie, queued[sock.Cookie].ToAccept) {
				continue
			}
			held, err := s.holdsSocket(g, conf, sock)
			if err != nil {
				return 0, fmt.Errorf("find who has listener %s: %w", conf.Name, err)
			}
			if !held {
				abandoned++
			}
		}
	}
	return abandoned, nil
}

// holdsSocket reports whether a generation has a descriptor of a socket. It
// says yes where /proc does not show the descriptors of another user's process
// (a container without CAP_SYS_PTRACE).
func (s *Supervisor) holdsSocket(g *generation, conf config.Listener, sock steer.Socket) (bool, error) {
	if _, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.process.PID)); err != nil {
		return true, nil
	}
	holders, err := ports.Holders(conf.AddrPort(), conf.DualStack)
	if err != nil {
		return false, err
	}
	for _, h := range holders {
		if h.Cookie == sock.Cookie {
			return slices.ContainsFunc(h.Processes, func(p ports.Process) bool { return s.belongs(p.PID, g) }), nil
		}
	}
	return false, nil
}

// belongs reports whether a process may be one of a generation's.
func (s *Supervisor) belongs(pid int, g *generation) bool {
	if s.cgroups == nil {
		return pid != os.Getpid()
	}
	return pid == g.process.PID || s.cgroups.Has(pid)
}

// stalls counts, for each listening socket, the readings in a row at which its
// accept queue was neither empty nor shorter than before.
type stalls map[uint64]stall

type stall struct {
	generation *generation
	toAccept   int
	readings   int
}

// stalled takes a reading and reports whether it is time to look closer.
func (all stalls) stalled(g *generation, cookie uint64, toAccept int) bool {
	before := all[cookie]
	now := stall{generation: g, toAccept: toAccept}
	if toAccept > 0 && toAccept >= before.toAccept {
		now.readings = before.readings + 1
	}
	if now.readings > stalledFor {
		now.readings = 0
		all[cookie] = now
		return true
	}
	all[cookie] = now
	return false
}

// forget drops the sockets of generations that serve no more.
func (all stalls) forget(serving []*generation) {
	for cookie, st := range all {
		if !slices.Contains(serving, st.generation) {
			delete(all, cookie)
		}
	}
}

// serving is who gets flows.
func (s *Supervisor) serving() []*generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*generation
	for _, g := range s.generations {
		if g.serves() {
			all = append(all, g)
		}
	}
	return all
}

// serves reports whether g is one that new flows should reach. Supervisor.mu is held.
func (g *generation) serves() bool {
	return g.state == Serving && !g.stopping && g.fit()
}

// fit reports whether flows can be given to g: it lives and holds its sockets.
func (g *generation) fit() bool { return g.alive() && !g.unfit.Load() }

// gaveUp treats a living generation that has left its places as one that
// crashed. Where another can take its flows it drains now, else when there is a
// successor: until then it serves with what it may still hold. A candidate makes
// its release fail.
func (s *Supervisor) gaveUp(g *generation, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !g.serves() {
		return // it ended, or was told to, since its sockets were counted
	}
	if r := s.running; r != nil && r.candidate == g {
		r.abort(fmt.Errorf("generation %d has given up %d of its listening sockets", g.id, left))
		return
	}
	g.unfit.Store(true)
	s.leave(g)
	s.log.Error("a serving generation gave up listening sockets: it is replaced", "generation", g.id,
		"given_up", left, "successor", s.shift.current != nil)
	s.noteCrash(g, fmt.Sprintf("it gave up %d of its listening sockets", left))
	if s.shift.current != nil {
		s.retire(g, g.recipe.config.Release.DrainTimeout)
		return
	}
	s.crashedNow(g)
}
