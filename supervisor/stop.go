package supervisor

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// shutdown ends every generation, within the time given or at once.
func (s *Supervisor) shutdown(timeout time.Duration, hurry <-chan struct{}) {
	// The sinks first, so that a client that comes now is refused and does not
	// wait for nobody.
	s.steering.CloseSinks()
	s.mu.Lock()
	s.stopping = true
	live := append([]*generation(nil), s.generations...)
	s.mu.Unlock()

	var all sync.WaitGroup
	for _, g := range live {
		all.Go(func() { s.stop(g, timeout) })
	}
	ended := make(chan struct{})
	go func() { all.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-hurry:
		close(s.hurried)
		<-ended
	}
	s.notify.Close() // ends hear
	s.work.Wait()
}

// abandonLeftovers gives the flows back to the generations of an earlier
// supervisor: ours does not come up, theirs still serve.
func (s *Supervisor) abandonLeftovers() {
	close(s.abandon)
	s.mu.Lock()
	before := len(s.generations)
	s.generations = slices.DeleteFunc(s.generations, (*generation).leftover)
	s.mu.Unlock()
	if before > 0 {
		s.steering.Detach()
	}
}

// close gives back what New took.
func (s *Supervisor) close() {
	s.closeHistory()
	for _, r := range []*recipe{s.kept, s.crash} {
		if r != nil {
			r.binary.Close()
		}
	}
	if s.notify != nil {
		s.notify.Close()
	}
	for _, fd := range s.unclaimed {
		unix.Close(fd)
	}
	// Of generations that live on nothing is taken away: another supervisor will
	// find it. This one is about to end.
	s.mu.Lock()
	leave := len(s.generations) > 0
	if s.keeper != nil && !leave && s.state.Previous != nil {
		s.state.Previous, s.state.PreviousOf = nil, nil // it ends with the keeper
		s.note()
	}
	s.mu.Unlock()
	if s.keeper != nil {
		s.keeper.Close(leave)
	}
	if leave {
		return
	}
	if s.steering != nil {
		s.steering.Close()
	}
	s.closeGuard()
	s.kernel.Close()
	s.closeTCPOption()
	if s.pins != "" {
		os.Remove(s.pins) // empty, unless another layout is pinned beside ours
	}
	if s.keys != nil {
		s.keys.Close()
	}
	if s.keptText > 0 {
		unix.Close(s.keptText)
	}
	if s.cgroups != nil {
		s.cgroups.Remove()
	}
	if s.lock != nil {
		s.lock.Close()
	}
}

// Leave makes this supervisor give way to another one: nothing is begun any more,
// and nothing ended. The caller ends the process at once, as if it had been killed;
// the next supervisor adopts what runs. The error says that a release is under way.
func (s *Supervisor) Leave() error {
	s.mu.Lock()
	if s.running != nil || s.waiting != nil || s.stopping {
		s.mu.Unlock()
		return errors.New("a release is under way, or this supervisor is stopping")
	}
	s.note()
	s.closeHistory() // spans that have not ended are the next one's
	return nil       // with s.mu held: whatever comes now waits for the end
}
