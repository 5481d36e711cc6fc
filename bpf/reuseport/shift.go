package reuseport

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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
