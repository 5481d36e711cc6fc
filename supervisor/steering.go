package supervisor

import (
	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// steerer is how a new flow finds its generation: [steering] has a program in
// the kernel choose, [takeover] lets generations share their listening sockets.
type steerer interface {
	mode() config.Steering
	// chooses reports whether the generation of a new flow can be chosen: the
	// candidate probed alone, given a share, and the others given nothing. If not,
	// every generation that accepts has its share from the moment it does.
	chooses() bool
	// refuse says why a release asks for what this mode cannot do, before
	// anything is started. Nil: it does not.
	refuse(r *release) error

	// bind makes the listening sockets of a generation, by listener, one a
	// worker. Their descriptors are the caller's to close.
	bind(c *config.Config) (map[string][]socket, error)
	// fill arms a slot: after it a probe or a shift may name it. empty makes a
	// slot give nothing any more.
	fill(slot uint8, c *config.Config, sockets map[string][]socket) error
	empty(slot uint8)
	// datagramGroups are the groups of UDP sockets; nil: this mode has none.
	datagramGroups() *datagrams

	// shift moves new flows: of listeners with a shift of their own, by name, and
	// of all others. fence returns when nothing is on its way by the
	// shift before.
	shift(all reuseport.Shift, own map[string]reuseport.Shift)
	fence() error

	// inSlot reports how many of a generation's sockets are where they were put.
	inSlot(g *generation) (in, all int, err error)
	// queued reads what is queued on each of some listening sockets, by cookie;
	// waiting sums it up.
	queued(sockets map[string][]socket) (map[uint64]iter.Queue, error)
	waiting(sockets map[string][]socket) (QueueLengths, error)
	// moved is what a slot got from listening sockets that closed, by listener.
	moved(slot uint8) (map[string]reuseport.Moved, error)
	// counts sums one slot's counters over all listeners.
	counts(slot int) (reuseport.Counts, error)

	// emptySinks hands what waited for somebody to serve to the current
	// generation; after closeSinks nobody waits any more, new clients are refused.
	emptySinks() error
	closeSinks()
	// detach leaves the listeners to what an earlier supervisor has left.
	detach()

	// known reports whether a listening socket is the supervisor's own.
	known(cookie uint64) bool
	// describe fills in what the status says of listeners; slots 0 to slots-1
	// have been used.
	describe(st *Status, slots int)
	close() error
}

// Steering by a program; the rest is in steer.go.

func (s *steering) mode() config.Steering { return config.SteeringBPF }

func (s *steering) chooses() bool { return true }

func (s *steering) refuse(*release) error { return nil }

func (s *steering) bind(c *config.Config) (map[string][]socket, error) { return bindAll(c, s.mark) }

func (s *steering) datagramGroups() *datagrams { return s.datagrams }

func (s *steering) fence() error { return s.node.Fence() }

func (s *steering) closeSinks() {
	for _, l := range s.all() {
		if !l.udp { // theirs answers nobody, and keeps nobody waiting
			l.closeSink()
		}
	}
}

func (s *steering) describe(st *Status, slots int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		st.Listeners = append(st.Listeners, ListenerStatus{Name: l.name, Address: l.address, Protocol: string(l.protocol), Closed: !l.open, Runs: l.runs()})
	}
	st.Slots = s.runs(slots)
}
