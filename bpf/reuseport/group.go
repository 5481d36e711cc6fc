package reuseport

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Choice says how a flow finds one of a slot's workers.
type Choice uint8

// The ways to choose a worker.
const (
	ByHash = Choice(steerChoiceCHOICE_HASH)
	ByCPU  = Choice(steerChoiceCHOICE_CPU)
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
	Reasons      = int(steerReasonREASONS)
)

// String is the reason as it stands in metrics.
func (r Reason) String() string {
	return [...]string{"current", "ramped", "probe", "fallback", "sink", "migrated", "lost", "worker_missed"}[r]
}

// NoSlot is where [Group.Counters] keeps what went to no slot.
const NoSlot = Slots

// Counts are runs by reason.
type Counts [Reasons]uint64

// Group is one listener's reuseport group. Its methods may be called from any
// goroutine, but one slot is filled and emptied by one at a time.
type Group struct {
	number   uint32
	dir      string
	prog     *ebpf.Program
	socks    *ebpf.Map
	slots    *ebpf.Map
	counters *ebpf.Map
	words    []uint64 // slots, mapped
}

// Group loads an instance of the program for the listener with this number,
// 1 to [MaxListeners].
func (n *Node) Group(number uint32) (_ *Group, err error) {
	if number == All || number > MaxListeners {
		return nil, fmt.Errorf("listener number %d is not in 1 to %d", number, MaxListeners)
	}
	g := &Group{number: number}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	if g.dir, err = n.groupDir(number); err != nil {
		return nil, err
	}
	for name, m := range map[string]**ebpf.Map{steerMapSocks: &g.socks, steerMapSlots: &g.slots, steerMapCounters: &g.counters} {
		if *m, err = n.makeMap(name, g.dir); err != nil {
			return nil, err
		}
	}
	if g.words, err = mapWords(g.slots); err != nil {
		return nil, err
	}

	spec := n.spec.Copy()
	if err := spec.Variables[steerVarLISTENER].Set(number); err != nil {
		return nil, fmt.Errorf("set the listener's number: %w", err)
	}
	var objs steerPrograms
	err = spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		steerMapShift: n.shift, steerMapProbes: n.probes,
		steerMapSocks: g.socks, steerMapSlots: g.slots, steerMapCounters: g.counters,
	}})
	if err != nil {
		return nil, fmt.Errorf("load sk_reuseport: %w", err)
	}
	g.prog = objs.Steer
	if g.dir != "" {
		if err := g.prog.Pin(filepath.Join(g.dir, steerProgSteer)); err != nil {
			return nil, fmt.Errorf("pin sk_reuseport: %w", err)
		}
	}
	return g, nil
}

// Attach puts the program on the group that this bound socket belongs to, in
// place of any other. A socket must be bound before its first sibling listens,
// or a connection could be hashed over members that are not ready.
func (g *Group) Attach(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, g.prog.FD()); err != nil {
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
	if err := g.socks.Put(uint32(sinkKey), uint64(fd)); err != nil {
		return fmt.Errorf("set the sink of listener %d: %w", g.number, err)
	}
	return nil
}

// Fill puts a generation's listening sockets, one a worker, into a slot. The
// slot gives its first flow to them when Fill has returned and a shift or a
// probe names it. The map holds no reference: the caller keeps the sockets.
func (g *Group) Fill(slot uint8, choice Choice, fds []int) error {
	if len(fds) == 0 || len(fds) > Workers {
		return fmt.Errorf("%d workers on listener %d: 1 to %d are possible", len(fds), g.number, Workers)
	}
	g.Empty(slot)
	for w, fd := range fds {
		if err := g.socks.Put(uint32(slot)*Workers+uint32(w), uint64(fd)); err != nil {
			return fmt.Errorf("put worker %d of listener %d in slot %d: %w", w, g.number, slot, err)
		}
	}
	// Last, and in one store: a slot that names workers has them all.
	atomic.StoreUint64(&g.words[slot], uint64(len(fds))|uint64(choice)<<8)
	return nil
}

// Empty makes a slot give nothing. Its sockets leave the map when they close.
func (g *Group) Empty(slot uint8) { atomic.StoreUint64(&g.words[slot], 0) }

// Cookies returns the cookies (SO_COOKIE) of the sockets in a slot, by worker;
// 0 where a worker's socket has gone.
func (g *Group) Cookies(slot uint8) ([]uint64, error) {
	cookies := make([]uint64, atomic.LoadUint64(&g.words[slot])&0xff)
	for w := range cookies {
		err := g.socks.Lookup(uint32(slot)*Workers+uint32(w), &cookies[w])
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read slot %d of listener %d: %w", slot, g.number, err)
		}
	}
	return cookies, nil
}

// Counters reads one slot's counters, or those of [NoSlot], summed over CPUs.
func (g *Group) Counters(slot int) (Counts, error) {
	var perCPU []steerTally
	if err := g.counters.Lookup(uint32(slot), &perCPU); err != nil {
		return Counts{}, fmt.Errorf("read counters of listener %d: %w", g.number, err)
	}
	var sum Counts
	for _, t := range perCPU {
		for r, n := range t.Runs {
			sum[r] += n
		}
	}
	return sum, nil
}

// Close gives back what this process holds and leaves the pins.
func (g *Group) Close() error {
	var errs []error
	if g.words != nil {
		errs = append(errs, unmapWords(g.words))
		g.words = nil
	}
	if g.prog != nil {
		errs = append(errs, g.prog.Close())
	}
	for _, m := range []*ebpf.Map{g.socks, g.slots, g.counters} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Unpin removes the group's pins.
func (g *Group) Unpin() error {
	if g.dir == "" {
		return nil
	}
	return os.RemoveAll(g.dir)
}

// Supported loads and frees one instance of the program: nil where this kernel
// and these privileges can steer.
func Supported() error {
	n, err := Open("")
	if err != nil {
		return explain(err)
	}
	defer n.Close()
	g, err := n.Group(1)
	if err != nil {
		return explain(err)
	}
	return g.Close()
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
