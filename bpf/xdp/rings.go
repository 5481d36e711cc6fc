package xdp

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// slotsPerElement is how many slots of a ring an element of its map has.
const slotsPerElement = 4

// slots is such an element: struct slots of tables.h.
type slots [slotsPerElement]uint16

// mapped makes an array one that can be mapped: its octets are read and written
// as memory then, where a system call takes one element after the other.
func mapped(m *ebpf.MapSpec) { m.Flags |= unix.BPF_F_MMAPABLE }

// memory is the elements of such an array, in multiples of eight octets, to which the
// kernel rounds each up (array_map_alloc in kernel/bpf/arraymap.c), until they are
// released.
func memory[E any](m *ebpf.Map) (elements []E, release func() error, err error) {
	n := int(m.MaxEntries())
	octets, err := unix.Mmap(m.FD(), 0, n*int((m.ValueSize()+7)&^7), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map a table: %w", err)
	}
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(octets))), n), func() error { return unix.Munmap(octets) }, nil
}

// SetRings replaces whole rings. A packet sees the old one or the new one. In a
// change of many rings one call is much faster than many. fill writes the reals of a
// ring's slots into table, which has anything in it; it is called on every core at once.
func (b *Balancer) SetRings(ids []uint32, fill func(id uint32, table []uint32)) error {
	made, errs := make([]*ebpf.Map, len(ids)), make([]error, len(ids))
	defer func() {
		for _, m := range made {
			m.Close() // the outer map holds it
		}
	}()
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(ids)) {
		workers.Go(func() {
			table := make([]uint32, b.ringSize)
			for i := range next {
				fill(ids[i], table)
				made[i], errs[i] = newRing(b.ring, table)
			}
		})
	}
	for i := range ids {
		next <- i
	}
	close(next)
	workers.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fds := make([]uint32, len(ids))
	for i, m := range made {
		fds[i] = uint32(m.FD())
	}
	// One write for all: after each the kernel waits until no program has the old
	// ring any more (maybe_wait_bpf_programs in kernel/bpf/syscall.c).
	if _, err := b.objs.Rings.BatchUpdate(ids, fds, nil); err != nil {
		return explained(fmt.Errorf("replace rings: %w", err))
	}
	return nil
}

func newRing(spec *ebpf.MapSpec, table []uint32) (_ *ebpf.Map, err error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make a ring: %w", err)
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	return m, fillRing(m, table)
}

func fillRing(m *ebpf.Map, table []uint32) error {
	elements, release, err := memory[slots](m)
	if err != nil {
		return err
	}
	for i, index := range table {
		elements[i/slotsPerElement][i%slotsPerElement] = uint16(index)
	}
	return release()
}

// DeleteRing takes a ring away.
func (b *Balancer) DeleteRing(ring uint32) error { return gone(b.objs.Rings.Delete(ring)) }

// Ring reads a ring back.
func (b *Balancer) Ring(id uint32) ([]uint32, error) {
	var inner *ebpf.Map
	if err := b.objs.Rings.Lookup(id, &inner); err != nil {
		return nil, err
	}
	defer inner.Close()
	table := make([]uint32, b.ringSize)
	err := each(inner, func(element uint32, of *slots) {
		for i, index := range of {
			if slot := int(element)*slotsPerElement + i; slot < len(table) {
				table[slot] = uint32(index)
			}
		}
	})
	return table, err
}
