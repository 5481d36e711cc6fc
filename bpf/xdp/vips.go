package xdp

import (
	"errors"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func key4(v VIP) xdpVip4Key {
	return xdpVip4Key{Addr: addrOf(v.Addr)[0], Port: wire(v.Port), Proto: protocol(v)}
}

func key6(v VIP) xdpVip6Key {
	return xdpVip6Key{Addr: addrOf(v.Addr), Port: wire(v.Port), Proto: protocol(v)}
}

// wire is a port as it stands in packets, and back.
func wire(port uint16) uint16 { return port>>8 | port<<8 }

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

// fold is an address in one word: fold of parse.h.
func fold(a netip.Addr) uint32 {
	w := addrOf(a)
	return w[0] ^ w[1] ^ w[2] ^ w[3]
}

// filterBit is the bit of a VIP's address in the filter: may_be_vip of parse.h.
func filterBit(a netip.Addr) (word int, bit uint64) {
	n := (fold(a) * 0x9e3779b1) >> 20
	return int(n / 64), 1 << (n % 64)
}

// place is where a VIP's copy stands, and the key that it has there: front_of of parse.h.
func place(v VIP) (at uint32, key uint64) {
	key = uint64(protocol(v))<<48 | uint64(wire(v.Port))<<32 | uint64(fold(v.Addr))
	if v.Addr.Is6() {
		key |= 1 << 56
	}
	return uint32(key * 0x9e3779b97f4a7c15 >> 52), key
}

// changing is the key of a place whose other words are written: the program asks
// the hash then.
const changing = ^uint64(0)

// readVIPs takes up what the tables hold, and mends what a process that died
// between two writes has left of the copies.
func (b *Balancer) readVIPs() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.vips = map[VIP]xdpVip{}
	if err := b.eachVIP(func(v VIP, e xdpVip) { b.vips[v] = e }); err != nil {
		return err
	}
	for v := range b.vips {
		if err := b.copyVIP(v); err != nil {
			return err
		}
	}
	return b.setFilter()
}

// copyVIP writes a VIP to its place, unless another has it.
func (b *Balancer) copyVIP(v VIP) error {
	at, key := place(v)
	var f xdpFront
	if err := b.objs.Fronts.Lookup(at, &f); err != nil {
		return err
	}
	e := xdpFront{Key: key, Vip: b.vips[v]}
	if v.Addr.Is6() {
		e.Addr = addrOf(v.Addr)
	}
	switch {
	case f.Key == key && f.Addr == e.Addr:
		return b.objs.Fronts.Put(at, e)
	case f.Key != 0 && f.Key != changing:
		return nil
	}
	e.Key = changing
	if err := b.objs.Fronts.Put(at, e); err != nil {
		return err
	}
	e.Key = key
	return b.objs.Fronts.Put(at, e)
}

// SetVIP has the program take a VIP's packets, or changes what it finds.
func (b *Balancer) SetVIP(v VIP, to VIPEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, had := b.vips[v]
	if !had {
		var err error
		if e.Number, err = b.number(); err != nil {
			return err
		}
		// Flows remembered of a VIP that was there before do not come back with it.
		e.Serial = uint32(time.Now().UnixNano() / 1000)
	}
	e.Ring, e.Flags = to.Ring, 0
	if to.QUIC {
		e.Flags |= uint32(xdpVipFlagVIP_QUIC)
	}
	if to.KatranIDs {
		e.Flags |= uint32(xdpVipFlagVIP_KATRAN)
	}
	m, key := b.table(v)
	if err := m.Put(key, e); err != nil {
		return err
	}
	b.vips[v] = e
	return errors.Join(b.copyVIP(v), b.setFilter())
}

// DeleteVIP has a VIP's packets pass.
func (b *Balancer) DeleteVIP(v VIP) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, key := place(v)
	var f xdpFront
	if err := b.objs.Fronts.Lookup(at, &f); err != nil {
		return err
	}
	_, had := b.vips[v]
	copied := had && f.Key == key && (!v.Addr.Is6() || f.Addr == addrOf(v.Addr))
	if copied {
		f.Key = changing
		if err := b.objs.Fronts.Put(at, f); err != nil {
			return err
		}
	}
	m, k := b.table(v)
	if err := gone(m.Delete(k)); err != nil {
		return err
	}
	delete(b.vips, v)
	if !copied {
		return b.setFilter()
	}
	for other := range b.vips {
		if there, _ := place(other); there == at {
			return errors.Join(b.copyVIP(other), b.setFilter())
		}
	}
	return errors.Join(b.objs.Fronts.Put(at, xdpFront{}), b.setFilter())
}

// setFilter writes the filter for the VIPs that there are. The program reads single
// words: what was set before and stays set is never seen as not set.
func (b *Balancer) setFilter() error {
	var f xdpVipFilter
	for v := range b.vips {
		word, bit := filterBit(v.Addr)
		f.Words[word] |= bit
	}
	if f == b.filter {
		return nil
	}
	b.filter = f
	return b.objs.Filter.Put(uint32(0), &f)
}

// number finds counters that no VIP has, and empties them.
func (b *Balancer) number() (uint32, error) {
	taken := map[uint32]bool{0: true}
	for _, e := range b.vips {
		taken[e.Number] = true
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

// eachVIP reads the tables.
func (b *Balancer) eachVIP(f func(VIP, xdpVip)) error {
	return errors.Join(
		each(b.objs.Vips4, func(k xdpVip4Key, e *xdpVip) {
			f(VIP{addrFrom([4]uint32{k.Addr}, false), wire(k.Port), k.Proto == unix.IPPROTO_UDP}, *e)
		}),
		each(b.objs.Vips6, func(k xdpVip6Key, e *xdpVip) {
			f(VIP{addrFrom(k.Addr, true), wire(k.Port), k.Proto == unix.IPPROTO_UDP}, *e)
		}),
	)
}
