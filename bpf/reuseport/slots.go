package reuseport

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/internal/patient"
)

// Choice says how a flow finds one of a slot's workers.
type Choice uint8

// The ways to choose a worker.
const (
	ByHash = Choice(steerChoiceCHOICE_HASH)
	ByCPU  = Choice(steerChoiceCHOICE_CPU)
)

// Fill puts a generation's listening sockets, one a worker, into a slot of the
// listener, in place of what the slot had there. The slot gives its first flow
// to them when Fill has returned and a shift or a probe names it. The map holds
// no reference: the caller keeps the sockets.
func (g *Group) Fill(slot uint8, choice Choice, fds []int) error {
	if len(fds) == 0 || len(fds) > Workers {
		return fmt.Errorf("%d workers on listener %d: 1 to %d are possible", len(fds), g.number, Workers)
	}
	n := g.node
	n.mu.Lock()
	defer n.mu.Unlock()
	at := g.place(slot)
	if err := n.vacate(at, g.number); err != nil {
		return err
	}
	first, ok := n.ranges.take(uint32(len(fds)))
	if !ok {
		return fmt.Errorf("no room for %d sockets of listener %d: all generations together have at most %d", len(fds), g.number, MaxSockets)
	}
	p := steerPlace{First: first, Workers: uint8(len(fds)), Choice: uint8(choice)}
	err := n.occupy(at, g.number, p, fds)
	if err != nil {
		n.ranges.give(p.First, uint32(p.Workers))
		return fmt.Errorf("fill slot %d of listener %d: %w", slot, g.number, err)
	}
	return nil
}

// occupy writes a place when its sockets are there. n.mu is held.
func (n *Node) occupy(slot, listener uint32, p steerPlace, fds []int) error {
	for w, fd := range fds {
		at := p.First + uint32(w)
		put := func() error { return n.sockets.Put(at, uint64(fd)) }
		err := put()
		if errors.Is(err, unix.EBUSY) {
			// A socket is in one table at most, and once: in that of an earlier process
			// until the kernel has freed it (reuseport_array_free,
			// kernel/bpf/reuseport_array.c), or in this one, where it had a place.
			if err = n.displace(fd, at, uint32(len(fds)-w)); err == nil {
				err = patient.While(unix.EBUSY, put)
			}
		}
		if err != nil {
			return fmt.Errorf("worker %d: %w", w, err)
		}
	}
	key := steerPlaceKey{Slot: slot, Listener: listener}
	if err := patient.Update(func() error { return n.placeOf.Put(key, p) }); err != nil {
		return err
	}
	if n.places[slot] == nil {
		n.places[slot] = map[uint32]steerPlace{}
	}
	n.places[slot][listener] = p
	atomic.StoreUint64(&n.arms[slot], 1)
	return nil
}

// displace takes a socket out of the table where it is in no place: its slot was emptied,
// or who put it there died before the place was written. No packet is sent to what has no
// place. The indices from first on are about to be written. Tables that are fresh have no such
// socket, and a look at all indices takes half a second. n.mu is held.
func (n *Node) displace(fd int, first, count uint32) error {
	if n.fresh {
		return nil
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	for at := range uint32(MaxSockets) {
		fresh := at >= first && at < first+count
		if !fresh && at < uint32(len(n.ranges.used)) && n.ranges.used[at] {
			continue
		}
		var is uint64
		err := n.sockets.Lookup(at, &is)
		if err == nil && is == cookie {
			return n.sockets.Delete(at)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look for a socket in the table: %w", err)
		}
	}
	return nil
}

// vacate takes a slot's place on a listener away. n.mu is held.
func (n *Node) vacate(slot, listener uint32) error {
	p, ok := n.places[slot][listener]
	if !ok {
		return nil
	}
	if err := n.placeOf.Delete(steerPlaceKey{Slot: slot, Listener: listener}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty slot %d of listener %d: %w", slot, listener, err)
	}
	if err := n.moves.Delete(steerPlaceKey{Slot: slot, Listener: listener}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget what slot %d got of listener %d: %w", slot, listener, err)
	}
	delete(n.places[slot], listener)
	n.ranges.give(p.First, uint32(p.Workers))
	return nil
}

// place is where the sockets of a slot are in the tables: those for datagrams have
// places of their own, since they are emptied at another time.
func (g *Group) place(slot uint8) uint32 {
	if g.address.Protocol == unix.IPPROTO_UDP {
		return uint32(slot) + Slots
	}
	return uint32(slot)
}

// Empty makes a slot give no connection, on any listener, and frees its places.
// Its sockets leave the map when they close. The first step is one store, so the
// error is of places that stay taken, never of flows that go on to come.
func (n *Node) Empty(slot uint8) error { return n.empty(uint32(slot)) }

// EmptyDatagrams is Empty for the sockets that take datagrams, and says that the
// slot is dead: what is still sent to its QUIC connections goes to the current
// generation, which answers by a stateless reset. So it is for a generation whose
// process has ended, where Empty is for one that is to get nothing new.
func (n *Node) EmptyDatagrams(slot uint8) error { return n.empty(uint32(slot) + Slots) }

func (n *Node) empty(slot uint32) error {
	atomic.StoreUint64(&n.arms[slot], 0)
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for listener := range n.places[slot] {
		errs = append(errs, n.vacate(slot, listener))
	}
	return errors.Join(errs...)
}

// readPlaces learns what an earlier process has put into the slots.
func (n *Node) readPlaces() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var key steerPlaceKey
	var p steerPlace
	all := n.placeOf.Iterate()
	for all.Next(&key, &p) {
		if key.Slot >= 2*Slots || !n.ranges.claim(p.First, uint32(p.Workers)) {
			return fmt.Errorf("the place of slot %d on listener %d makes no sense: sockets %d and %d more", key.Slot, key.Listener, p.First, p.Workers)
		}
		if n.places[key.Slot] == nil {
			n.places[key.Slot] = map[uint32]steerPlace{}
		}
		n.places[key.Slot][key.Listener] = p
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read the places: %w", err)
	}
	return nil
}

// Armed reports whether a slot gives connections where it has places.
func (n *Node) Armed(slot uint8) bool { return atomic.LoadUint64(&n.arms[slot]) != 0 }

// Cookies returns the cookies (SO_COOKIE) of the sockets that a slot has on the
// listener, by worker; 0 where a worker's socket has gone. A slot that is empty
// there has none.
func (g *Group) Cookies(slot uint8) ([]uint64, error) {
	g.node.mu.Lock()
	p := g.node.places[g.place(slot)][g.number]
	g.node.mu.Unlock()
	cookies := make([]uint64, p.Workers)
	for w := range cookies {
		err := g.node.sockets.Lookup(p.First+uint32(w), &cookies[w])
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read slot %d of listener %d: %w", slot, g.number, err)
		}
	}
	return cookies, nil
}

// ranges hands out neighbouring indices below MaxSockets.
type ranges struct {
	used []bool // up to the highest that was ever handed out
	next uint32 // where the last search ended
}

// take finds n free indices in a row, from where it found the last ones.
func (r *ranges) take(n uint32) (first uint32, ok bool) {
	run := uint32(0)
	// Twice around at most, and a little more: a row may begin just before next.
	for i, at := 0, r.next; i < MaxSockets+Workers; i, at = i+1, at+1 {
		if at == MaxSockets {
			at, run = 0, 0
		}
		run++
		if at < uint32(len(r.used)) && r.used[at] {
			run = 0
		}
		if run == n {
			r.next = (at + 1) % MaxSockets
			return at + 1 - n, r.claim(at+1-n, n)
		}
	}
	return 0, false
}

// claim marks indices as used; false when one is already, or is none.
func (r *ranges) claim(first, n uint32) bool {
	if first > MaxSockets || n > MaxSockets-first {
		return false
	}
	for uint32(len(r.used)) < first+n {
		r.used = append(r.used, false)
	}
	for i := first; i < first+n; i++ {
		if r.used[i] {
			return false
		}
		r.used[i] = true
	}
	return true
}

func (r *ranges) give(first, n uint32) { clear(r.used[first : first+n]) }
