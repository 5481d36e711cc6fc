package steer

import (
	"net/netip"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/doctor"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// Steering is how a new flow finds its generation: [BPF] has a program in the
// kernel choose, [Takeover] lets generations share their listening sockets. What a mode
// does not need it answers with nothing to do. All methods may be called at once.
type Steering interface {
	// Mode is the way it is: config.SteeringBPF or config.SteeringTakeover.
	Mode() config.Steering
	// Chooses reports whether the generation of a new flow can be chosen: the
	// candidate probed alone, given a share, and the others given nothing. If not,
	// every generation that accepts has its share from the moment it does.
	Chooses() bool
	// Refuse says why a release asks for what this mode cannot do, before
	// anything is started. Nil: it does not.
	Refuse(release Asked) error

	// Bind makes the listening sockets of a generation (TCP), and BindDatagrams
	// those of UDP, or says that this mode has none. They are the caller's to close.
	Bind(c *config.Config) (Sockets, error)
	BindDatagrams(c *config.Config) (Sockets, error)
	// Fill and FillDatagrams arm a slot with what was bound for this configuration:
	// after it a probe or a shift may name the slot.
	Fill(slot uint8, c *config.Config, sockets Sockets) error
	FillDatagrams(slot uint8, c *config.Config, sockets Sockets) error
	// Refill is Fill for a generation that an earlier supervisor had: on the listeners
	// where the slot has nothing, because the tables are fresh, or that supervisor died.
	Refill(slot uint8, c *config.Config, sockets Sockets) error
	// Empty makes a slot give no new flow of TCP any more. EmptyDatagrams says that
	// its process has ended: what is still sent to it goes to who serves, which tells
	// the client.
	Empty(slot uint8)
	EmptyDatagrams(slot uint8)

	// Shift moves new flows: of listeners with a shift of their own, by name, and
	// of all others. Fence returns when nothing is on its way by the shift before:
	// it waits for the programs that run, some 10 ms.
	Shift(all reuseport.Shift, own map[string]reuseport.Shift)
	Fence() error
	// InForce are the shifts that the kernel has, as an earlier supervisor may have left
	// them: of all listeners, and of those that have one of their own, by name. One whose
	// salt is 0 was never made.
	InForce() (all reuseport.Shift, own map[string]reuseport.Shift)

	// InSlot reports how many of a generation's listening sockets, as they were given
	// to Fill, are where they were put. One that its generation has shut down is not.
	InSlot(slot uint8, c *config.Config, sockets Sockets) (in, all int, err error)
	// Queued reads what waits on each of some listening sockets, by cookie:
	// connections that are half open, and that are finished and not accepted. A
	// socket that is gone has no entry.
	Queued(sockets Sockets) (map[uint64]iter.Queue, error)
	// Buffers is what waits at a slot's sockets of UDP, over its workers, and what they
	// let fall since they were made, by listener, as [Listener.Name]. A listener whose
	// sockets have all closed has no entry.
	Buffers(slot uint8) (map[string]ports.Buffer, error)
	// Moved is what a slot got, since the tables were made, from listening sockets of
	// others that closed, by listener.
	Moved(slot uint8) (map[string]reuseport.Moved, error)
	// Counts sums one slot's counters over all listeners: how often the program chose
	// it, by reason, since the tables were made. reuseport.NoSlot: it found nobody.
	Counts(slot int) (reuseport.Counts, error)

	// EmptySinks hands what waited for somebody to serve to the current
	// generation; after CloseSinks nobody waits any more, new clients are refused.
	EmptySinks() error
	CloseSinks()
	// Detach leaves the listeners to what an earlier supervisor has left.
	Detach()

	Listeners

	// Prober reaches one generation by its public addresses; nil: that cannot be.
	Prober() Prober

	// Tables are what outlives a supervisor that dies, as descriptors by name; they stay
	// the steering's.
	Tables() map[string]int
	// Known reports whether a listening socket is the supervisor's own.
	Known(cookie uint64) bool
	// Describe tells of each listener, and what was counted for each of the slots
	// 0 to slots-1, those that have been used.
	Describe(slots int) ([]Listener, []SlotRuns)
	// Close ends the steering and takes what it has pinned away.
	Close() error
}

// Listeners come and go with releases, where a mode lets them.
type Listeners interface {
	// Conflicts says why the listeners of a configuration cannot be had beside, or in
	// place of, those that are there.
	Conflicts(c *config.Config) []string
	// Admit makes room for the listeners of a configuration; new ones are closed.
	Admit(c *config.Config) error
	// Shut closes those that nobody of the given serves: it comes before the shift that
	// leaves them. Open opens those that one of the given serves, when no packet is on its
	// way by the shift before. Forget takes the closed ones away that nobody living has.
	Shut(serving ...Addresses)
	AnyShut() bool
	Open(serving ...Addresses) error
	Forget(living ...Addresses) error
	// Rename calls the listeners as a configuration does; with only not nil those alone.
	Rename(c *config.Config, only []string)
}

// Prober sends connections of the supervisor's own to the generation in one slot, and
// tells who was reached.
type Prober interface {
	// Steer sends what comes from an address to a slot, whatever the shift says, until
	// Unsteer.
	Steer(from netip.AddrPort, slot uint8) error
	Unsteer(from netip.AddrPort) error
	// Counts sums one slot's counters over all listeners, CountsOf one listener's, of
	// TCP, over all slots.
	Counts(slot int) (reuseport.Counts, error)
	CountsOf(l config.Listener) (reuseport.Counts, error)
}

// Asked is what a release wants of the steering.
type Asked struct {
	Config *config.Config
	Some   bool             // it moves the flows of some listeners alone
	Ramp   []config.Percent // the candidate's shares of new flows, in turn
}

// Listener is one listener of the node, for the status.
type Listener struct {
	Name     string
	Address  string
	Protocol config.Protocol   // http3 for the UDP half of an https listener
	Closed   bool              // new clients are refused
	Missed   uint64            // what its sinks let fall: handshakes beyond their backlog; of UDP every datagram that came there
	Runs     map[string]uint64 // how often the program ran, by [reuseport.Reason], without zeros; nil: there is none
}

// SlotRuns are the runs that ended in one slot, over all listeners; slot -1
// stands for none. Reasons has no zeros.
type SlotRuns struct {
	Slot    int               `json:"slot"`
	Reasons map[string]uint64 `json:"reasons"`
}

// Choose turns what the configuration asks for into the mode that runs, with the
// reason where that is not the best there is. Asked for in words, a mode is taken
// or refused; only auto gives way. What pins (see [Pins]) shows to have been loaded since
// the machine started is not tried again.
func Choose(want config.Steering, pins string) (mode config.Steering, why string, err error) {
	switch want {
	case config.SteeringTakeover:
		return config.SteeringTakeover, "the configuration says so", nil
	case config.SteeringBPF:
		return config.SteeringBPF, "", doctor.Missing()
	}
	lack := doctor.Missing()
	if lack == nil && reuseport.Pinned(pins) == nil {
		return config.SteeringBPF, "", nil
	}
	for _, try := range []func() error{reuseport.Supported, iter.Supported} {
		if lack == nil {
			lack = try()
		}
	}
	if lack != nil {
		return config.SteeringTakeover, lack.Error(), nil
	}
	return config.SteeringBPF, "", nil
}
