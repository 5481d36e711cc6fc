// Package reuseport steers new flows to a generation's sockets.
//
// A [Node] holds what all listeners share: the shift in force and the sources
// of probes. A [Group] is one listener: the program on its reuseport group and
// the sockets by slot. What always holds:
//
//   - A shift is one atomic store; [Node.Fence] returns when no packet is still
//     being steered by what was there before.
//   - A socket is in at most one slot, and a slot gives nothing before
//     [Group.Fill] and after [Group.Empty].
//   - Neither closing a Node nor the death of its process changes the way of a
//     packet: the program and its maps live as long as a member of the group.
package reuseport

//go:generate go tool bpf2go -target bpfel -type tally -type source -type reason -type choice steer steer.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The fixed shape of the maps.
const (
	Slots        = 256  // a generation's place in the tables is 0 to 255
	Workers      = 64   // sockets of one slot on one listener
	MaxListeners = 4096 // numbered from 1

	sinkKey = Slots * Workers

	// layout names the pinned maps' version. A change of a map's shape is a new
	// version in a directory of its own; an old directory is never reinterpreted.
	layout = "v1"
)

// All is the number that stands for every listener without a shift of its own.
const All = 0

// Shift says where new flows go. Its layout is drawn in bpf/include/shift.h.
type Shift struct {
	Current, Other uint8
	// Weight is the share of new flows that Other gets, in 1/65536.
	Weight uint16
	// Salt makes the draw of one release independent of the draw of another.
	// Never 0; constant over the steps of a ramp.
	Salt uint32
}

func (s Shift) word() uint64 {
	return uint64(s.Current) | uint64(s.Other)<<8 | uint64(s.Weight)<<16 | uint64(s.Salt)<<32
}

func shiftOf(word uint64) Shift {
	return Shift{uint8(word), uint8(word >> 8), uint16(word >> 16), uint32(word >> 32)}
}

// Node holds the maps that all listeners share. Its methods may be called from
// any goroutine.
type Node struct {
	dir    string // where things are pinned; empty: nowhere
	spec   *ebpf.CollectionSpec
	shift  *ebpf.Map
	probes *ebpf.Map
	words  []uint64 // shift, mapped
}

// Open loads the shared maps. When dir is not empty it is a directory of a BPF
// file system, which Open makes, and everything is pinned below dir/v1, fresh:
// what an earlier process has pinned there is unpinned, and lives on as long
// as sockets use it.
func Open(dir string) (_ *Node, err error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	n := &Node{spec: spec}
	defer func() {
		if err != nil {
			n.Unpin()
			n.Close()
		}
	}()
	if dir != "" {
		n.dir = filepath.Join(dir, layout)
		if err := os.RemoveAll(n.dir); err != nil {
			return nil, fmt.Errorf("unpin what was left: %w", err)
		}
		if err := os.MkdirAll(n.dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
	}
	if n.shift, err = n.makeMap(steerMapShift, n.dir); err != nil {
		return nil, err
	}
	if n.probes, err = n.makeMap(steerMapProbes, n.dir); err != nil {
		return nil, err
	}
	if n.words, err = mapWords(n.shift); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *Node) makeMap(name, dir string) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(n.spec.Maps[name])
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	if dir != "" {
		if err := m.Pin(filepath.Join(dir, name)); err != nil {
			m.Close()
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return m, nil
}

// SetShift makes s the shift of a listener, or of [All]. One store; the next
// packet is steered by it.
func (n *Node) SetShift(listener uint32, s Shift) {
	if s.Salt == 0 {
		panic("reuseport: a shift without salt reads as not set")
	}
	atomic.StoreUint64(&n.words[listener], s.word())
}

// ClearShift puts a listener back under the shift of [All].
func (n *Node) ClearShift(listener uint32) { atomic.StoreUint64(&n.words[listener], 0) }

// Shift reads the shift of a listener, or of [All]; the zero Shift is none.
func (n *Node) Shift(listener uint32) Shift { return shiftOf(atomic.LoadUint64(&n.words[listener])) }

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL (include/uapi/linux/membarrier.h).
const membarrierGlobal = 1

// Fence returns when every packet that was being steered at the call has its
// socket. It takes about 10 ms: the program runs inside an RCU read section,
// and membarrier(2) waits for all of them (kernel/sched/membarrier.c).
func (n *Node) Fence() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno == 0 {
		return nil
	}
	// A kernel with nohz_full CPUs refuses. Updating a map of maps waits for
	// the same grace period (maybe_wait_bpf_programs in kernel/bpf/syscall.c).
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	in, err := ebpf.NewMap(inner)
	if err != nil {
		return fmt.Errorf("fence: membarrier: %v; inner map: %w", errno, err)
	}
	defer in.Close()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return fmt.Errorf("fence: membarrier: %v; outer map: %w", errno, err)
	}
	defer outer.Close()
	if err := outer.Put(uint32(0), in); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	return nil
}

func source(from netip.AddrPort) steerSource {
	return steerSource{Addr: from.Addr().As16(), Port: from.Port()<<8 | from.Port()>>8}
}

// Steer sends connections from this source address to the slot alone, whatever
// the shift says, until Unsteer.
func (n *Node) Steer(from netip.AddrPort, slot uint8) error {
	if err := n.probes.Put(source(from), uint32(slot)); err != nil {
		return fmt.Errorf("steer probe from %s: %w", from, err)
	}
	return nil
}

// Unsteer forgets a source address.
func (n *Node) Unsteer(from netip.AddrPort) error {
	if err := n.probes.Delete(source(from)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("unsteer probe from %s: %w", from, err)
	}
	return nil
}

// Close gives back what this process holds and leaves the pins. Steering goes on.
func (n *Node) Close() error {
	var errs []error
	if n.words != nil {
		errs = append(errs, unmapWords(n.words))
		n.words = nil
	}
	for _, m := range []*ebpf.Map{n.shift, n.probes} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Unpin removes the pins of the node and of all its groups.
func (n *Node) Unpin() error {
	if n.dir == "" {
		return nil
	}
	return os.RemoveAll(n.dir)
}

func (n *Node) groupDir(number uint32) (string, error) {
	if n.dir == "" {
		return "", nil
	}
	dir := filepath.Join(n.dir, "listener-"+strconv.FormatUint(uint64(number), 10))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the pin directory: %w", err)
	}
	return dir, nil
}

// mapWords maps a BPF_F_MMAPABLE array of eight-byte values.
func mapWords(m *ebpf.Map) ([]uint64, error) {
	page := os.Getpagesize()
	size := (int(m.MaxEntries())*8 + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", m, err)
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), size/8), nil
}

func unmapWords(words []uint64) error {
	return unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8))
}
