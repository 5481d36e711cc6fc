package reuseport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/internal/patient"
)

// Reason says how one run of the program ended.
type Reason int

// The reasons, in the order of the counters. Runs are not flows: a handshake
// answered with a SYN cookie takes two, a stray segment one.
const (
	Current      = Reason(steerReasonREASON_CURRENT)       // to the current slot
	Ramped       = Reason(steerReasonREASON_RAMPED)        // to the other slot, by weight
	Probe        = Reason(steerReasonREASON_PROBE)         // to the candidate, by source address
	Fallback     = Reason(steerReasonREASON_FALLBACK)      // the drawn slot had no socket, the other took it
	Sink         = Reason(steerReasonREASON_SINK)          // no slot had a socket: it waits
	Migrated     = Reason(steerReasonREASON_MIGRATED)      // its listener closed: handed on
	Lost         = Reason(steerReasonREASON_LOST)          // its listener closed and nobody could take it, or no sink
	WorkerMissed = Reason(steerReasonREASON_WORKER_MISSED) // beside the others: the drawn worker had no socket

	// Of datagrams alone.
	Named      = Reason(steerReasonREASON_NAMED)      // to the slot and worker that the connection ID names
	Remembered = Reason(steerReasonREASON_REMEMBERED) // to where the flow's first datagram went
	Reset      = Reason(steerReasonREASON_RESET)      // the named slot is dead: to the current one, which says so
	Stranger   = Reason(steerReasonREASON_STRANGER)   // no new flow, and nobody's: to the sink

	Reasons = int(steerReasonREASONS)
)

// String is the reason as it stands in metrics.
func (r Reason) String() string {
	return [...]string{"current", "ramped", "probe", "fallback", "sink", "migrated", "lost", "worker_missed", "named", "remembered", "reset", "stranger"}[r]
}

// NoSlot is where [Node.Counters] keeps what went to no slot.
const NoSlot = Slots

// Counts are runs by reason.
type Counts [Reasons]uint64

func (c *Counts) add(runs [Reasons]uint64) {
	for r, n := range runs {
		c[r] += n
	}
}

// Address is what the kernel forms a group of listening sockets by, and what
// the program knows a listener by.
type Address struct {
	netip.AddrPort
	// UDP is false for TCP.
	UDP bool
	// Forget is the silence that ends a flow of UDP, to the millisecond. 0 is
	// QUIC, whose flows are told by their connection IDs.
	Forget time.Duration
	// DualStack is an IPv6 socket without IPV6_V6ONLY.
	DualStack bool
}

func (a Address) key() steerAddress {
	k := steerAddress{Addr: a.Addr().As16(), Port: a.Port(), Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP}
	if a.Addr().Unmap().Is4() {
		k.Family = unix.AF_INET
	} else if a.DualStack {
		k.Dual = 1
	}
	if a.UDP {
		k.Protocol = unix.IPPROTO_UDP
	}
	return k
}

// Group is one listener's reuseport group. Its methods may be called from any
// goroutine. There is nothing to close.
type Group struct {
	node    *Node
	number  uint32
	address steerAddress
}

// Group gives a listener its number, 1 to [MaxListeners]. One that has this
// number already, in the maps that [Reopen] found, keeps its counters, and its flows
// are remembered no shorter than before. No two listeners have one number; that is the
// caller's to see to.
func (n *Node) Group(number uint32, address Address) (*Group, error) {
	if number == All || number > MaxListeners {
		return nil, fmt.Errorf("listener number %d is not in 1 to %d", number, MaxListeners)
	}
	g := &Group{node: n, number: number, address: address.key()}
	values := make([]steerListener, ebpf.MustPossibleCPU())
	for i := range values {
		values[i].Number, values[i].Forget = number, uint32(address.Forget.Milliseconds())
	}
	err := patient.Update(func() error { return n.listeners.Update(g.address, values, ebpf.UpdateNoExist) })
	if errors.Is(err, ebpf.ErrKeyExist) {
		err = n.listeners.Lookup(g.address, &values)
		had, want := values[0].Forget, uint32(address.Forget.Milliseconds())
		switch {
		case err != nil:
		case values[0].Number != number:
			err = fmt.Errorf("listener %d has this address", values[0].Number)
		case had < want || want == 0 && had != 0: // it was QUIC, or it is now
			err = g.Remember(address.Forget)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("number listener %d, %s: %w", number, address.AddrPort, err)
	}
	return g, nil
}

// Remember makes a flow of UDP known for this long a silence, of packets that come
// from now on. What is counted in the moment of the change may be lost.
func (g *Group) Remember(silence time.Duration) error {
	var perCPU []steerListener
	err := g.node.listeners.Lookup(g.address, &perCPU)
	for i := range perCPU {
		perCPU[i].Forget = uint32(silence.Milliseconds())
	}
	if err == nil {
		err = g.node.listeners.Update(g.address, perCPU, ebpf.UpdateExist)
	}
	if err != nil {
		return fmt.Errorf("remember the flows of listener %d for %v: %w", g.number, silence, err)
	}
	return nil
}

// Remembers is how long a silence ends a flow of UDP; 0: it is QUIC.
func (g *Group) Remembers() (time.Duration, error) {
	var perCPU []steerListener
	if err := g.node.listeners.Lookup(g.address, &perCPU); err != nil {
		return 0, fmt.Errorf("look up listener %d: %w", g.number, err)
	}
	return time.Duration(perCPU[0].Forget) * time.Millisecond, nil
}

// Number looks up the number that an address has; 0: none. After [Reopen] it has
// the one of before.
func (n *Node) Number(address Address) (uint32, error) {
	var perCPU []steerListener
	err := n.listeners.Lookup(address.key(), &perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up the number of listener %s: %w", address.AddrPort, err)
	}
	return perCPU[0].Number, nil
}

// Numbers are those that are taken, of TCP and UDP.
func (n *Node) Numbers() (map[uint32]bool, error) {
	taken := map[uint32]bool{}
	var address steerAddress
	var perCPU []steerListener
	all := n.listeners.Iterate()
	for all.Next(&address, &perCPU) {
		taken[perCPU[0].Number] = true
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("read the numbers of listeners: %w", err)
	}
	return taken, nil
}

// Remove forgets the listener: its address, its own shift and its sink's place.
// For when no socket of the group is left: a flow that comes to one gets a reset.
func (g *Group) Remove() error {
	g.node.ClearShift(g.number)
	for m, key := range map[*ebpf.Map]any{g.node.listeners: g.address, g.node.sinks: g.number} {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove listener %d: %w", g.number, err)
		}
	}
	return nil
}

// Number is the listener's number.
func (g *Group) Number() uint32 { return g.number }

// Attach puts the program on the group that this bound socket belongs to, in
// place of any other. A socket must be bound before its first sibling listens,
// or a connection could be hashed over members that are not ready.
func (g *Group) Attach(fd int) error {
	prog := g.node.prog
	if g.address.Protocol == unix.IPPROTO_UDP {
		prog = g.node.datagram
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, prog.FD()); err != nil {
		return fmt.Errorf("attach sk_reuseport: %w", err)
	}
	return nil
}

// Detach takes the program off the group that this socket belongs to. New flows
// are then hashed over all members.
func (g *Group) Detach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0); err != nil {
		return fmt.Errorf("detach sk_reuseport: %w", err)
	}
	return nil
}

// SetSink names the listening socket that gets a flow when no slot has one.
func (g *Group) SetSink(fd int) error {
	if err := g.node.sinks.Put(g.number, uint64(fd)); err != nil {
		return fmt.Errorf("set the sink of listener %d: %w", g.number, err)
	}
	return nil
}

// ClearSink takes a listener's sink away: a flow that no slot takes is refused.
func (n *Node) ClearSink(listener uint32) error {
	if err := n.sinks.Delete(listener); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take the sink of listener %d away: %w", listener, err)
	}
	return nil
}

// Counters reads the listener's counters, over all slots and CPUs.
func (g *Group) Counters() (Counts, error) {
	var perCPU []steerListener
	if err := g.node.listeners.Lookup(g.address, &perCPU); err != nil {
		return Counts{}, fmt.Errorf("read the counters of listener %d: %w", g.number, err)
	}
	var sum Counts
	for _, l := range perCPU {
		sum.add(l.Runs)
	}
	return sum, nil
}

// Supported loads and frees the program: nil where this kernel and these
// privileges can steer.
func Supported() error {
	n, err := Open("")
	if err != nil {
		return explain(err)
	}
	return n.Close()
}

// explain cuts the verifier's log, which is for developers, from an error that
// an operator reads.
func explain(err error) error {
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		return fmt.Errorf("%s: %w", strings.SplitN(err.Error(), ":", 2)[0], v.Cause)
	}
	return err
}
