package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/state"
)

// syncTimeout bounds the reading of what a generation said last.
const syncTimeout = time.Second

// removeTimeout bounds the wait for the last process to leave a cgroup.
const removeTimeout = 5 * time.Second

// longEnough is how long a generation must have served for its death to count
// as the first in a row.
const longEnough = 10 * time.Second

// watch waits for the end of a generation's process and takes it out of
// everything, in the order that loses nothing: first no new flow goes to its
// sockets, then our copies close, and the kernel hands on what they held.
func (s *Supervisor) watch(g *generation) {
	exit, ended := g.wait(s.abandon)
	if !ended {
		return
	}
	// Its last words, with the flows it had to cut, may still be unread.
	heard, cancel := context.WithTimeout(context.Background(), syncTimeout)
	defer cancel()
	if err := s.notify.Sync(heard); err != nil {
		s.log.Warn("what the generation said last may be lost", "generation", g.id, "error", err)
	}

	s.mu.Lock()
	g.exit = exit
	crashed := !g.stopping
	served := g.state == Serving
	g.dead.Store(true)
	s.leave(g)
	g.state = Gone
	s.drained.Ended++
	s.drained.Cut += uint64(g.cut)
	s.drained.IdleClosed += uint64(g.idleClosed)
	s.drained.HalfOpenLeft += uint64(g.halfOpenLeft)
	// Nobody could take what is queued for it: it stays in our copies until
	// there is somebody.
	held := crashed && served && s.shift.current == nil && !s.stopping
	if held {
		s.held = append(s.held, g)
	}
	if crashed && served {
		s.log.Error("a serving generation ended", "generation", g.id, "exit", exit, "successor", s.shift.current != nil)
		s.noteCrash(g, exit)
		s.crashedNow(g)
	}
	s.mu.Unlock()

	if !g.leftover() {
		s.steering.Empty(g.slot)
		s.steering.EmptyDatagrams(g.slot)
		if err := s.steering.Fence(); err != nil {
			s.log.Error("fence", "error", err)
		}
		if !held {
			g.closeSockets()
		}
	}
	g.book.End()
	if crashed {
		g.testimony = g.book.Testimony()
		for _, words := range g.testimony {
			s.log.Error("the ledger of a generation that crashed", "generation", g.id, "says", words)
		}
	}
	close(g.exited)
	if crashed && !held || g.leftover() {
		s.removed(g)
	}
}

// handOver closes the listening sockets of generations that died when nobody
// could succeed them, under this supervisor or while there was none. The kernel moves their queues to the current one.
func (s *Supervisor) handOver() {
	s.mu.Lock()
	held := s.held
	s.held = nil
	s.mu.Unlock()
	for _, g := range held {
		g.closeSockets()
		s.removed(g)
	}
	s.forgetLeft()
}

// crashedNow sees to a successor if the generation that ended was the last one
// new flows could go to. s.mu is held.
func (s *Supervisor) crashedNow(g *generation) {
	if s.shift.current != nil || s.stopping {
		return
	}
	if r := s.running; r != nil && r.candidate == g && r.fallback != nil {
		return // what served before it is the better bet, see unserved
	}
	again, err := g.recipe.again()
	s.crashed = g
	if err != nil {
		s.log.Error("keep what the crashed generation ran", "error", err)
		return
	}
	if s.crash != nil {
		s.crash.binary.Close()
	}
	s.crash = again
	if time.Since(g.started) > longEnough {
		s.crashes = 0
	}
	s.log.Warn("nobody serves, clients wait: what the generation ran is started again", "generation", g.id,
		"attempt", s.crashes+1, "in", backOff(s.crashes).String())
	if r := s.running; r != nil && !r.shifted {
		// Its candidate may never be ready, and clients wait.
		r.abort(errors.New("the serving generation ended: it is started again first"))
	}
	s.nudge()
}

// reap kills what is still there and forgets the generation.
func (s *Supervisor) reap(g *generation) {
	if g.alive() {
		g.kill()
	}
	<-g.exited
	s.removed(g)
}

// removed forgets a generation that has ended, once: what it held is given
// back, and its slot is free. Every one of its sockets is closed, so nothing
// of it is in the tables.
func (s *Supervisor) removed(g *generation) {
	g.removeOnce.Do(func() {
		s.remove(g)
		s.ids.GenerationEnded()
	})
}

func (s *Supervisor) remove(g *generation) {
	g.closeSockets()
	if !g.leftover() {
		s.steering.EmptyDatagrams(g.slot) // again, should it have ended before it was put there
	}
	g.process.Close()
	s.keeper.Drop(keptOf(g.id, ""))
	if g.text > 0 {
		unix.Close(g.text)
	}
	g.intake.Close()
	if g.recipe != nil {
		g.recipe.binary.Close()
	}
	if g.cgroup != nil {
		for late := time.Now().Add(removeTimeout); !g.cgroup.Remove(); time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				s.log.Warn("a generation's cgroup is still in use", "generation", g.id)
				g.cgroup.Dir.Close()
				break
			}
		}
	}
	last := g.flows.End()
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.endingOf(g, last)
	s.drained.Undeclared += e.Undeclared
	s.endAccount(g)
	g.book.Close()
	s.generations = slices.DeleteFunc(s.generations, func(other *generation) bool { return other == g })
	if !g.leftover() {
		s.slots[g.slot] = nil
	}
	s.forgetListeners()
	s.noteEnding(g, e)
	s.note()
	s.log.Info("generation ended", "generation", g.id, "exit", e.Exit, "cut", e.Cut, "idle_closed", e.IdleClosed, "half_open_left", e.HalfOpenLeft, "undeclared", e.Undeclared, "in_flight", e.InFlight)
}

// openLeftover finds a process that an earlier supervisor started.
func openLeftover(left state.Generation) (*generation, error) {
	process, err := spawn.Attach(left.PID)
	if err != nil {
		return nil, err
	}
	// The descriptor names one process for good; was it this one that was meant?
	if start, err := spawn.StartTime(left.PID); err != nil || start != left.StartTime || process.Ended(0) {
		process.Close()
		return nil, os.ErrProcessDone
	}
	return &generation{
		id: left.ID, state: Draining, startTime: left.StartTime,
		process: process,
		ready:   make(chan struct{}), extend: make(chan time.Duration, 1),
		exited: make(chan struct{}), squeezed: make(chan struct{}),
	}, nil
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
