package supervisor

import (
	"syscall"
	"time"

	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/trace"
)

const (
	// halfOpenWait bounds the wait for handshakes that a generation has
	// answered: a client that vanished would hold it up for 63 s otherwise
	// (tcp_synack_retries). What is unfinished then goes over by migration.
	halfOpenWait = 3 * time.Second
	// acceptWait bounds the wait for the generation to accept what is queued. One
	// that is at its max_connections accepts nothing until it is told to stop.
	acceptWait = 3 * time.Second
	// hearMost bounds the wait for a generation to say that it has heard that it is to
	// stop; hearPoll is how often it is asked.
	hearMost = time.Second
	hearPoll = 10 * time.Millisecond
	// queuePoll is how often the queues are read; a reading takes some 50 µs.
	queuePoll = 5 * time.Millisecond
	// lastCallMost and lastCallAnswer bound how long before the deadline a
	// generation of ours is told, by a second SIGTERM, to say goodbye to what is
	// left: it spreads that over a tenth of the drain, then hears the answers.
	lastCallMost   = 5 * time.Second
	lastCallAnswer = 3 * time.Second
	// killAfter is what a generation has left when nobody waits for it any more.
	killAfter = time.Second
)

// lastCallBefore (docs/decisions/006) is the time that a generation of ours needs for its last call.
func lastCallBefore(timeout time.Duration) time.Duration {
	return min(timeout/10, lastCallMost) + min(timeout/5, lastCallAnswer)
}

// retire sends a generation to drain and then to reap, beside what comes next.
// s.mu is held.
func (s *Supervisor) retire(g *generation, timeout time.Duration) {
	if g.stopping {
		return
	}
	g.stopping, g.state = true, Draining
	g.beginEnding(timeout)
	s.dropSpare(g) // now, so that who comes to a listener that it alone has is refused from here on
	s.work.Go(func() { s.stop(g, timeout) })
}

// stop drains and reaps a generation; timeout 0 means: kill it.
func (s *Supervisor) stop(g *generation, timeout time.Duration) {
	s.mu.Lock()
	g.stopping = true
	if timeout > 0 && g.alive() {
		g.state = Draining
	}
	s.mu.Unlock()
	traced := s.traceEnding(g)
	if timeout > 0 {
		traced.begin("drain", trace.DrainTimeout.Int64(timeout.Milliseconds()))
		s.drain(g, timeout, traced)
		traced.end("drain")
		s.reached("drain ends")
	}
	traced.begin("reap")
	s.reap(g)
	traced.end("reap")
	s.reached("reap ends")
}

// drain lets a generation finish the flows it has. It is told to stop only when
// nothing waits for it in the kernel any more.
func (s *Supervisor) drain(g *generation, timeout time.Duration, traced *tracedEnd) {
	s.mu.Lock()
	ending := g.beginEnding(timeout)
	told := g.told
	s.dropSpare(g)
	s.mu.Unlock()
	defer ending.stop()

	if !g.leftover() && !told && s.steered(g) {
		s.emptyQueues(g, ending.end.C)
		traced.note(trace.EventQueueEmpty)
	}
	// That it drains is on record before its slot is empty: the next supervisor gives
	// no new flows back to it.
	s.mu.Lock()
	s.noteDraining(g)
	s.mu.Unlock()
	// Ours first: when the generation closes its own, the last copy is gone and
	// the kernel hands on what is left.
	if !g.leftover() {
		s.steering.Empty(g.slot)
		g.closeSockets()
	}
	s.reached("slot emptied")
	told = told && s.wasTold(g)
	lingered := !told && s.linger(g, timeout)
	s.mu.Lock()
	switch {
	case ending.isForward():
		ending.over(g, max(time.Until(g.deadline), 0)) // the wait for the queues may have seen the end
	case lingered:
		ending.over(g, timeout) // what follows has all its time
	case time.Until(g.deadline) <= 0:
		ending.end.Reset(0) // the wait for the queues has seen the end, which two may wait for
	}
	// A second SIGTERM would be the last call: that a generation has been told is
	// on record before it is, and the next supervisor does not tell it again. Nor do we,
	// where the end of the supervisor drains one that is draining.
	tell := !told && !g.signalled
	if tell {
		g.toldAt, g.signalled = time.Now(), true
	}
	g.told = true
	s.note()
	s.reached("stop noted")
	s.mu.Unlock()
	if tell && g.process.Signal(syscall.SIGTERM) != nil {
		return // it has ended
	}
	s.reached("stop told")
	traced.note(trace.EventToldToStop)

	squeezed, hurried := g.squeezed, s.hurried
	for {
		select {
		case <-g.exited:
			return
		case <-hurried:
			hurried = nil
			ending.end.Reset(killAfter)
			ending.lastCall.Reset(0)
		case <-squeezed:
			squeezed = nil
			s.mu.Lock()
			ending.over(g, min(ending.goodbye, time.Until(g.deadline)))
			s.mu.Unlock()
		case <-ending.lastCall.C:
			if s.unheard(g) {
				ending.lastCall.Reset(hearPoll)
				continue
			}
			traced.note(trace.EventLastCall)
			g.process.Signal(syscall.SIGTERM)
		case <-ending.end.C:
			traced.note(trace.EventDeadline)
			s.log.Warn("the drain's deadline is over: killing what is left", "generation", g.id)
			return
		}
	}
}

// unheard reports that a generation of ours was told to stop a moment ago and has not
// said so yet. Of two signals that follow each other so closely the process may see one,
// and the other was to be the last call.
func (s *Supervisor) unheard(g *generation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !g.leftover() && g.recipe.config.Proxy.Baton && !g.stops && time.Since(g.toldAt) < hearMost
}

// dropSpare makes sure that no new flow falls back to a generation that is
// about to stop. s.mu is held.
func (s *Supervisor) dropSpare(g *generation) {
	spare := s.shift.other == g
	if spare {
		s.shift.other, s.shift.weight = nil, 0
	}
	for name, f := range s.own {
		if f.other == g {
			f.other, f.weight = nil, 0
			s.own[name], spare = f, true
		}
	}
	if spare {
		s.applyShift()
	}
}

// steered reports whether new flows go to somebody else now, so that the
// generation's queues can run empty. Queues that are shared need not: they
// outlive the generation.
func (s *Supervisor) steered(g *generation) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.steering.Chooses() && s.shift.current != nil && !s.owns(g)
}

// emptyQueues (docs/decisions/003) waits until nothing is queued for a generation that gets no new
// flows: no handshake half open, or the wait for them over; nothing to accept.
func (s *Supervisor) emptyQueues(g *generation, end <-chan time.Time) {
	// After the fence no packet is on its way to it by the old shift, and every
	// SYN that was has become a half-open connection that can be counted.
	if err := s.steering.Fence(); err != nil {
		s.log.Error("fence", "error", err)
	}
	if g.unfit.Load() {
		return // nobody accepts what waits: the sooner it is handed on the better
	}
	begin := time.Now()
	left := s.pollQueues(g, end, func(q account.QueueLengths) bool {
		return q.HalfOpen == 0 || time.Since(begin) > halfOpenWait
	})
	// A handshake that finishes leaves the one count before it enters the other.
	if err := s.steering.Fence(); err != nil {
		s.log.Error("fence", "error", err)
	}
	begin = time.Now()
	s.pollQueues(g, end, func(q account.QueueLengths) bool {
		return q.ToAccept == 0 || time.Since(begin) > acceptWait
	})

	if left.HalfOpen > 0 {
		s.log.Warn("handshakes stay half open: they go over by migration", "generation", g.id, "half_open", left.HalfOpen)
		s.mu.Lock()
		g.halfOpenLeft = left.HalfOpen
		s.mu.Unlock()
	}
}

func (s *Supervisor) pollQueues(g *generation, end <-chan time.Time, enough func(account.QueueLengths) bool) account.QueueLengths {
	tick := time.NewTicker(queuePoll)
	defer tick.Stop()
	for {
		q, err := s.queueLengths(g.sockets)
		if err != nil {
			s.log.Error("read the queues of a draining generation", "generation", g.id, "error", err)
			return q
		}
		if enough(q) {
			return q
		}
		select {
		case <-tick.C:
		case <-g.exited:
			return q
		case <-g.squeezed:
			return q
		case <-s.hurried:
			return q
		case <-end:
			return q
		}
	}
}
