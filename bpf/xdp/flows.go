package xdp

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What flows.h says of the connection table.
const (
	ways         = 8
	setsLog      = 18
	sets         = 1 << setsLog
	realBits     = 12
	tickShift    = 24 // of nanoseconds
	beingWritten = 1
	places       = sets * ways
)

// ticks is a time in the table's unit.
func ticks(d time.Duration) uint32 { return uint32(min(uint64(d)>>tickShift, 1<<31-1)) }

// openFlows makes the connection table, or finds it, and returns its seed.
func (b *Balancer) openFlows(spec *ebpf.MapSpec) (seed uint64, err error) {
	m, err := ebpf.NewMapWithOptions(spec, ebpf.MapOptions{PinPath: b.dir})
	if err != nil {
		return 0, explained(fmt.Errorf("open the connection table: %w", err))
	}
	defer m.Close()
	table, release, err := memory[xdpFlowSet](m)
	if err != nil {
		return 0, err
	}
	if seed = table[sets].Tags[0]; seed == 0 {
		var random [8]byte
		rand.Read(random[:])                             // never fails
		seed = binary.LittleEndian.Uint64(random[:]) | 1 // odd: each bit of a tag counts
		table[sets].Tags[0] = seed
	}
	return seed, release()
}

// now is the clock that the program reads.
func now() (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &t)
	return time.Duration(t.Nano()), err
}

// Up to xdp-v3 the connection table was a hash of these.
type (
	hashedKey struct {
		Addr       [4]uint32
		Ports, VIP uint32
	}
	hashedFlow struct {
		Real, Epoch uint32
		Seen        time.Duration
	}
)

// carryFlows enters the flows of an earlier layout's table that this one does not know.
func (b *Balancer) carryFlows(dir string) error {
	from, err := ebpf.LoadPinnedMap(filepath.Join(dir, "flows"), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the connection table of %s: %w", filepath.Base(dir), err)
	}
	defer from.Close()
	if from.Type() == b.objs.Flows.Type() {
		return nil // it is this one
	}
	table, release, err := memory[xdpFlowSet](b.objs.Flows)
	if err != nil {
		return err
	}
	err = each(from, func(k hashedKey, f *hashedFlow) {
		tag := flowHash(k.Addr, k.Ports) ^ uint64(k.VIP)*0x9e3779b97f4a7c15
		remember(&table[tag*table[sets].Tags[0]>>(64-setsLog)], tag, f.Epoch<<realBits|f.Real, ticks(f.Seen))
	})
	return errors.Join(err, release())
}

// flowHash is flow_hash of parse.h.
func flowHash(client [4]uint32, ports uint32) uint64 {
	h := uint64(client[1])<<32 | uint64(client[0])
	h ^= (uint64(client[3])<<32 | uint64(client[2])) * 0x9e3779b97f4a7c15
	h ^= uint64(ports) << 32
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// remember is remember of flows.h, except that a flow that is known stays as it is.
// The program may be at work there at the same time.
func remember(set *xdpFlowSet, tag uint64, owner, seen uint32) {
	at, longest, old := 0, int32(-1<<31), uint64(0)
	for i := range set.Tags {
		t := atomic.LoadUint64(&set.Tags[i])
		silent := int32(seen - atomic.LoadUint32(&set.Flows[i].Seen))
		switch t {
		case tag:
			return
		case beingWritten:
			continue
		case 0:
			silent = 1<<31 - 1
		}
		if silent > longest {
			at, longest, old = i, silent, t
		}
	}
	// Where all are newer the flow has been forgotten.
	if longest < 0 || !atomic.CompareAndSwapUint64(&set.Tags[at], old, beingWritten) {
		return
	}
	atomic.StoreUint32(&set.Flows[at].Owner, owner)
	atomic.StoreUint32(&set.Flows[at].Seen, seen)
	atomic.StoreUint64(&set.Tags[at], tag)
}
