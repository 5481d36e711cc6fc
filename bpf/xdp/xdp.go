// Package xdp is the balancer in front of nodes: a program that picks the node for
// each packet of a VIP, and the tables that it works by.
//
// Everything is pinned. The program goes on without a process, and the next one
// finds the tables as they are and replaces the program through its links, with no
// packet in between that no program sees.
package xdp

//go:generate go tool bpf2go -target bpfel -type vip -type real -type answer -type tally -type real_tally -type link -type reason -type vip_flag -type real_flag -type vip_filter xdp xdp.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
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
	// HostOrder reads the TCP option as fleets of little-endian hosts write it
	// that do not convert to network order.
	HostOrder bool
}

// Balancer is the program with its tables. Its methods may be called from any
// goroutine.
type Balancer struct {
	dir  string
	objs xdpObjects
	ring *ebpf.MapSpec
	spec *ebpf.CollectionSpec

	mu      sync.Mutex
	sources map[int]source // MAC addresses of interfaces
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
		o.NewFlowsPerCPU = int(spec.Maps["flows"].MaxEntries) / cpus / 16
	}
	if err := errors.Join(
		spec.Variables["new_flows_per_cpu"].Set(uint32(o.NewFlowsPerCPU)),
		spec.Variables["host_order"].Set(o.HostOrder),
	); err != nil {
		return nil, err
	}
	b.ring = spec.Maps["rings"].InnerMap
	b.spec = spec
	b.ring.MaxEntries = uint32(o.RingSize)
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
	if err := spec.LoadAndAssign(&b.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: b.dir}}); err != nil {
		return nil, fmt.Errorf("load the balancer's program: %w", err)
	}
	if err := errors.Join(then(), b.setFilter(), b.setDevices()); err != nil {
		return nil, errors.Join(err, b.objs.Close())
	}
	return b, nil
}

// Close ends the use of the tables. They stay, and the program goes on.
func (b *Balancer) Close() error { return b.objs.Close() }

// RemoveAll takes everything away that is pinned below a directory: the program
// off its interfaces, and its tables.
func RemoveAll(dir string) error { return os.RemoveAll(filepath.Join(dir, layout)) }

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
	var index uint32
	var e xdpReal
	var errs []error
	it := b.objs.Reals.Iterate()
	for it.Next(&index, &e) {
		if !set[e.Ifindex] {
			set[e.Ifindex] = true
			errs = append(errs, b.setDevice(e.Ifindex))
		}
	}
	return errors.Join(append(errs, it.Err())...)
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
func (b *Balancer) SetServerID(id, index uint32) error { return b.objs.Servers.Put(id, index) }

// DeleteServerID has an id name nobody.
func (b *Balancer) DeleteServerID(id uint32) error { return gone(b.objs.Servers.Delete(id)) }

// gone is the error of taking something away that may have gone before.
func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// SetRings replaces whole rings. A packet sees the old one or the new one.
func (b *Balancer) SetRings(rings map[uint32][]uint32) error {
	var ids, fds []uint32
	var slots []uint32
	for id, table := range rings {
		m, err := ebpf.NewMap(b.ring)
		if err != nil {
			return fmt.Errorf("make a ring: %w", err)
		}
		defer m.Close() // the outer map holds it
		for len(slots) < len(table) {
			slots = append(slots, uint32(len(slots)))
		}
		if _, err := m.BatchUpdate(slots[:len(table)], table, nil); err != nil {
			return fmt.Errorf("fill a ring: %w", err)
		}
		ids, fds = append(ids, id), append(fds, uint32(m.FD()))
	}
	// One write for all: the kernel waits after each until no program has the old
	// ring any more.
	_, err := b.objs.Rings.BatchUpdate(ids, fds, nil)
	return err
}

// DeleteRing takes a ring away.
func (b *Balancer) DeleteRing(ring uint32) error { return gone(b.objs.Rings.Delete(ring)) }

func key4(v VIP) xdpVip4Key {
	return xdpVip4Key{Addr: addrOf(v.Addr)[0], Port: v.Port>>8 | v.Port<<8, Proto: protocol(v)}
}

func key6(v VIP) xdpVip6Key {
	return xdpVip6Key{Addr: addrOf(v.Addr), Port: v.Port>>8 | v.Port<<8, Proto: protocol(v)}
}

func protocol(v VIP) uint8 {
	if v.UDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// table is the map that has a VIP, and its key there.
func (b *Balancer) table(v VIP) (*ebpf.Map, any) {
	if v.Addr.Is6() {
		return b.objs.Vips6, key6(v)
	}
	return b.objs.Vips4, key4(v)
}

// SetVIP has the program take a VIP's packets, or changes what it finds.
func (b *Balancer) SetVIP(v VIP, to VIPEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, key := b.table(v)
	var e xdpVip
	switch err := m.Lookup(key, &e); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		if e.Number, err = b.number(); err != nil {
			return err
		}
		// Flows remembered of a VIP that was there before do not come back with it.
		e.Serial = uint32(time.Now().UnixNano() / 1000)
	case err != nil:
		return err
	}
	e.Ring, e.Flags = to.Ring, 0
	if to.QUIC {
		e.Flags |= uint32(xdpVipFlagVIP_QUIC)
	}
	if to.KatranIDs {
		e.Flags |= uint32(xdpVipFlagVIP_KATRAN)
	}
	// The filter first: between the two writes packets find no VIP, and pass as before.
	if err := b.setFilter(v.Addr); err != nil {
		return err
	}
	return m.Put(key, e)
}

// number finds counters that no VIP has, and empties them.
func (b *Balancer) number() (uint32, error) {
	taken := map[uint32]bool{0: true}
	if err := b.eachVIP(func(_ VIP, e xdpVip) { taken[e.Number] = true }); err != nil {
		return 0, err
	}
	for n := uint32(1); n <= MaxVIPs*2; n++ {
		if !taken[n] {
			cpus, err := ebpf.PossibleCPU()
			if err != nil {
				return 0, err
			}
			return n, b.objs.Tallies.Put(n, make([]xdpTally, cpus))
		}
	}
	return 0, errors.New("there is no place for another VIP")
}

func (b *Balancer) eachVIP(f func(VIP, xdpVip)) error {
	var e xdpVip
	var k4 xdpVip4Key
	it := b.objs.Vips4.Iterate()
	for it.Next(&k4, &e) {
		f(VIP{addrFrom([4]uint32{k4.Addr}, false), k4.Port>>8 | k4.Port<<8, k4.Proto == unix.IPPROTO_UDP}, e)
	}
	var k6 xdpVip6Key
	it6 := b.objs.Vips6.Iterate()
	for it6.Next(&k6, &e) {
		f(VIP{addrFrom(k6.Addr, true), k6.Port>>8 | k6.Port<<8, k6.Proto == unix.IPPROTO_UDP}, e)
	}
	return errors.Join(it.Err(), it6.Err())
}

// DeleteVIP has a VIP's packets pass.
func (b *Balancer) DeleteVIP(v VIP) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m, key := b.table(v)
	if err := gone(m.Delete(key)); err != nil {
		return err
	}
	return b.setFilter()
}
