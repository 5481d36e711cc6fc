// Package xdp is the balancer in front of nodes: a program that picks the node for
// each packet of a VIP, and the tables that it works by.
//
// Everything is pinned. The program goes on without a process, and the next one
// finds the tables as they are and replaces the program through its links, with no
// packet in between that no program sees.
package xdp

//go:generate go tool bpf2go -target bpfel -type vip -type real -type answer -type tally -type real_tally -type link -type reason -type vip_flag -type real_flag -type vip_filter -type front -type flow_set xdp xdp.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -mcpu=v3

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/cidkeys"
)

// The sizes of the tables. Real 0 is nobody.
const (
	MaxReals = 4096
	MaxVIPs  = 4096
)

// Real is a real as the program sees it.
type Real struct {
	Addr    netip.Addr
	MAC     [6]byte // zeros: it is not known
	Ifindex int
	// Local means that the address is this host's own: its packets pass.
	Local bool
	// Down reals get nothing.
	Down bool
	// Drained is of no meaning to the program: the next process finds it here.
	Drained bool
}

// VIP is what the program looks a packet's destination up by.
type VIP struct {
	Addr netip.Addr
	Port uint16 // 0: every port
	UDP  bool
}

// VIPEntry is what it finds.
type VIPEntry struct {
	Ring            uint32
	QUIC, KatranIDs bool
}

// Options are how the program is loaded.
type Options struct {
	// Dir is a directory of a BPF file system, below which everything is pinned.
	// Required.
	Dir string
	// RingSize is the number of slots of every ring.
	RingSize int
	// NewFlowsPerCPU bounds what the connection table learns in a second on each
	// CPU. Defaults to a sixteenth of the CPU's share of the table, so that a flood
	// takes that many seconds to push out what was there.
	NewFlowsPerCPU int
	// UDPIdle is the silence after which a flow of datagrams is forgotten. Defaults
	// to a minute.
	UDPIdle time.Duration
	// HostOrder reads the TCP option as fleets of little-endian hosts write it
	// that do not convert to network order.
	HostOrder bool
}

// Balancer is the program with its tables. Its methods may be called from any
// goroutine.
type Balancer struct {
	dir  string
	objs xdpObjects
	ring *ebpf.MapSpec // of an inner map
	// ringSize is its number of slots, four to an element.
	ringSize int
	spec     *ebpf.CollectionSpec

	mu      sync.Mutex
	sources map[int]source // MAC addresses of interfaces
	vips    map[VIP]xdpVip // what the tables hold
	filter  xdpVipFilter
}

// Open loads the program with the tables that are pinned, or new ones.
func Open(o Options) (*Balancer, error) {
	b := &Balancer{dir: filepath.Join(o.Dir, layout), sources: map[int]source{}}
	spec, err := loadXdp()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the pin directory: %w", err)
	}
	if err := spec.Variables["ring_size"].Set(uint32(o.RingSize)); err != nil {
		return nil, err
	}
	if o.NewFlowsPerCPU == 0 {
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return nil, err
		}
		o.NewFlowsPerCPU = places / cpus / 16
	}
	if err := errors.Join(
		spec.Variables["new_flows_per_cpu"].Set(uint32(o.NewFlowsPerCPU)),
		spec.Variables["host_order"].Set(o.HostOrder),
		spec.Variables["udp_idle"].Set(ticks(cmp.Or(o.UDPIdle, time.Minute))),
	); err != nil {
		return nil, err
	}
	b.ring = spec.Maps["rings"].InnerMap
	b.spec = spec
	b.ring.MaxEntries = uint32(o.RingSize)/slotsPerElement + 1
	b.ringSize = o.RingSize
	b.ring.Key, b.ring.Value = nil, nil // or each ring has its types loaded first
	mapped(b.ring)
	mapped(spec.Maps["servers"])
	for name, m := range spec.Maps {
		switch name {
		case "answers", ".rodata", ".bss", ".data":
		default:
			m.Pinning = ebpf.PinByName
		}
	}
	then, err := b.carry()
	if err != nil {
		return nil, err
	}
	seed, err := b.openFlows(spec.Maps["flows"])
	if err != nil {
		return nil, err
	}
	time, err := now()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(spec.Variables["flow_seed"].Set(seed), spec.Variables["tick"].Set(ticks(time))); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&b.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: b.dir}}); err != nil {
		return nil, explained(fmt.Errorf("load the balancer's program: %w", err))
	}
	if err := errors.Join(then(), b.readVIPs(), b.setDevices()); err != nil {
		return nil, errors.Join(err, b.objs.Close())
	}
	return b, nil
}

// Close ends the use of the tables. They stay, and the program goes on.
func (b *Balancer) Close() error { return b.objs.Close() }

// Keys are those of encrypted connection IDs.
func (b *Balancer) Keys() *cidkeys.Table { return cidkeys.Of(b.objs.CidKeys) }

// addrOf is an address as it stands in packets, IPv4 in the first word.
func addrOf(a netip.Addr) (words [4]uint32) {
	var raw [16]byte
	copy(raw[:], a.AsSlice())
	for i := range words {
		words[i] = uint32(raw[i*4]) | uint32(raw[i*4+1])<<8 | uint32(raw[i*4+2])<<16 | uint32(raw[i*4+3])<<24
	}
	return words
}

func addrFrom(words [4]uint32, is6 bool) netip.Addr {
	var raw [16]byte
	for i, w := range words {
		raw[i*4], raw[i*4+1], raw[i*4+2], raw[i*4+3] = byte(w), byte(w>>8), byte(w>>16), byte(w>>24)
	}
	if is6 {
		return netip.AddrFrom16(raw)
	}
	return netip.AddrFrom4([4]byte(raw[:4]))
}

// SetReal writes the entry of a place.
func (b *Balancer) SetReal(index uint32, r Real) error {
	var e, old xdpReal
	if err := b.objs.Reals.Lookup(index, &old); err != nil {
		return err
	}
	e.Addr, e.Mac, e.Ifindex, e.Epoch = addrOf(r.Addr), r.MAC, uint32(r.Ifindex), old.Epoch
	if old.Addr != [4]uint32{} && old.Addr != e.Addr {
		e.Epoch++ // another node: what is remembered of the one before is over
	}
	if err := b.setDevice(e.Ifindex); err != nil {
		return err
	}
	if r.Addr.Is6() {
		e.Flags |= uint32(xdpRealFlagREAL_IPV6)
	}
	if r.Local {
		e.Flags |= uint32(xdpRealFlagREAL_LOCAL)
	}
	if !r.Down {
		e.Flags |= uint32(xdpRealFlagREAL_UP)
	}
	if r.Drained {
		e.Flags |= uint32(xdpRealFlagREAL_DRAINING)
	}
	if mac, ok := b.sourceOf(r.Ifindex); ok && r.MAC != [6]byte{} {
		e.Source = mac
		e.Flags |= uint32(xdpRealFlagREAL_NEIGHBOUR)
	}
	return b.objs.Reals.Put(index, e)
}

// setDevice lets frames leave by an interface.
func (b *Balancer) setDevice(ifindex uint32) error {
	if ifindex == 0 {
		return nil
	}
	// EINVAL: there is no such interface, or no more. Packets will count as no_device.
	if err := b.objs.Devices.Put(ifindex, ifindex); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("send by interface %d: %w", ifindex, err)
	}
	return nil
}

// setDevices does so for every real: the kernel takes an interface out that goes,
// and another may have its number since.
func (b *Balancer) setDevices() error {
	set := map[uint32]bool{}
	var errs []error
	err := each(b.objs.Reals, func(_ uint32, e *xdpReal) {
		if !set[e.Ifindex] {
			set[e.Ifindex] = true
			errs = append(errs, b.setDevice(e.Ifindex))
		}
	})
	return errors.Join(append(errs, err)...)
}

// DeleteReal empties a place. What the connection table remembers of it is over:
// whoever gets the place has another epoch.
func (b *Balancer) DeleteReal(index uint32) error {
	var old xdpReal
	if err := b.objs.Reals.Lookup(index, &old); err != nil {
		return err
	}
	return b.objs.Reals.Put(index, xdpReal{Epoch: old.Epoch + 1})
}

// SetServerID says which real an id names.
func (b *Balancer) SetServerID(id, index uint32) error {
	if id < b.objs.Servers.MaxEntries() {
		return b.objs.Servers.Put(id, index)
	}
	return b.objs.LargeServers.Put(id, index)
}

// DeleteServerID has an id name nobody.
func (b *Balancer) DeleteServerID(id uint32) error {
	if id < b.objs.Servers.MaxEntries() {
		return b.objs.Servers.Put(id, uint32(0))
	}
	return gone(b.objs.LargeServers.Delete(id))
}

// gone is the error of taking something away that may have gone before.
func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}
