package xdp

import (
	"errors"

	"github.com/cilium/ebpf"
)

// Held is what the tables hold.
type Held struct {
	Reals     map[uint32]Real
	ServerIDs map[uint32]uint32
	VIPs      map[VIP]VIPEntry
	Rings     []uint32
}

// Held reads the tables back.
func (b *Balancer) Held() (Held, error) {
	h := Held{map[uint32]Real{}, map[uint32]uint32{}, map[VIP]VIPEntry{}, nil}
	var index uint32
	var e xdpReal
	reals := b.objs.Reals.Iterate()
	for reals.Next(&index, &e) {
		if e.Addr == [4]uint32{} {
			continue
		}
		flag := func(f xdpRealFlag) bool { return e.Flags&uint32(f) != 0 }
		h.Reals[index] = Real{
			Addr: addrFrom(e.Addr, flag(xdpRealFlagREAL_IPV6)), MAC: e.Mac, Ifindex: int(e.Ifindex),
			Local: flag(xdpRealFlagREAL_LOCAL), Down: !flag(xdpRealFlagREAL_UP), Drained: flag(xdpRealFlagREAL_DRAINING),
		}
	}
	var id, to uint32
	small := make([]uint32, b.objs.Servers.MaxEntries())
	var at ebpf.MapBatchCursor
	if _, err := b.objs.Servers.BatchLookup(&at, make([]uint32, len(small)), small, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return h, err
	}
	for id, to := range small {
		if to != 0 {
			h.ServerIDs[uint32(id)] = to
		}
	}
	servers := b.objs.LargeServers.Iterate()
	for servers.Next(&id, &to) {
		h.ServerIDs[id] = to
	}
	rings := b.objs.Rings.Iterate()
	for rings.Next(&id, &to) {
		h.Rings = append(h.Rings, id)
	}
	err := b.eachVIP(func(v VIP, e xdpVip) {
		h.VIPs[v] = VIPEntry{e.Ring, e.Flags&uint32(xdpVipFlagVIP_QUIC) != 0, e.Flags&uint32(xdpVipFlagVIP_KATRAN) != 0}
	})
	return h, errors.Join(reals.Err(), servers.Err(), rings.Err(), err)
}

// Ring reads a ring back.
func (b *Balancer) Ring(id uint32) ([]uint32, error) {
	var inner *ebpf.Map
	if err := b.objs.Rings.Lookup(id, &inner); err != nil {
		return nil, err
	}
	defer inner.Close()
	elements := make([]slots, inner.MaxEntries())
	var at ebpf.MapBatchCursor
	_, err := inner.BatchLookup(&at, make([]uint32, len(elements)), elements, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says that this was all
		return nil, err
	}
	table := make([]uint32, b.ringSize)
	for i := range table {
		table[i] = uint32(elements[i/slotsPerElement][i%slotsPerElement])
	}
	return table, nil
}
