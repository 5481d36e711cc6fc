package supervisor

import (
	"maps"
	"os"
	"strings"

	"github.com/baton-mesh/baton/proxy/contract"
)

// Status tells where everything stands.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		State: "waiting", Version: s.opts.Version, PID: os.Getpid(),
		Node: s.config.Node.Name, ServerID: s.config.Node.ServerID, Steering: string(s.steering.Mode()), Because: s.why,
		Generations: []GenerationStatus{}, Drained: s.drained, Guard: s.guardStatus(), TCPOption: s.tcpOptionStatus(), ConnectionIDs: s.ids.Status(),
		Spans: SpanStatus{s.traces.Counts(), s.store.Counts(), s.intakes.Counts()},
	}
	if s.opts.Unsteered {
		st.Steering = "none"
	}
	if s.unsaved != nil {
		st.Unsaved = s.unsaved.Error()
	}
	st.Problems = s.problems()
	switch {
	case s.stopping:
		st.State = "stopping"
	case s.shift.current != nil:
		st.State = "serving"
	case len(s.outcomes) == 0:
		st.State = "starting"
	}
	if g := s.shift.current; g != nil {
		st.Current = g.id
	}
	for _, g := range s.generations {
		of := g.status()
		of.Listeners, of.Reserve = s.restOf(g), g == s.reserve
		st.Generations = append(st.Generations, of)
	}
	if r := s.running; r != nil {
		running := s.releaseStatus(r)
		st.Release = &running
	}
	if s.waiting != nil {
		st.Waiting = s.waiting.result.ID
	}
	if n := len(s.history); n > 0 {
		last := s.history[n-1]
		st.Last = &last
	}
	listeners, runs := s.steering.Describe(s.slotsUsed)
	st.Slots = runs
	for _, l := range listeners {
		of := ListenerStatus{Name: l.Name, Address: l.Address, Protocol: string(l.Protocol), Closed: l.Closed, SinkDropped: l.Missed, Runs: l.Runs}
		if g := s.shiftOf(strings.TrimSuffix(l.Name, contract.UDPSuffix)).current; g != nil && !l.Closed {
			of.Generation = g.id
		}
		st.Listeners = append(st.Listeners, of)
	}
	s.describeFlows(&st)
	s.describeQueues(&st)
	return st
}

// Ready reports whether the balancer outside may send flows: a generation
// serves, and the supervisor is not about to stop.
func (s *Supervisor) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.stopping && s.shift.current != nil
}

// Outcomes counts all releases that have ended.
func (s *Supervisor) Outcomes() map[Outcome]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.outcomes)
}

// Results are the releases that have ended, oldest first, as far as kept.
func (s *Supervisor) Results() []Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Result(nil), s.history...)
}
