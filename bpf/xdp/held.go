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
	return h, errors.Join(
		each(b.objs.Reals, func(index uint32, e *xdpReal) {
			if e.Addr == [4]uint32{} {
				return
			}
			flag := func(f xdpRealFlag) bool { return e.Flags&uint32(f) != 0 }
			h.Reals[index] = Real{
				Addr: addrFrom(e.Addr, flag(xdpRealFlagREAL_IPV6)), MAC: e.Mac, Ifindex: int(e.Ifindex),
				Local: flag(xdpRealFlagREAL_LOCAL), Down: !flag(xdpRealFlagREAL_UP), Drained: flag(xdpRealFlagREAL_DRAINING),
			}
		}),
		b.eachSmallID(func(id, index uint32) { h.ServerIDs[id] = index }),
		each(b.objs.LargeServers, func(id uint32, index *uint32) { h.ServerIDs[id] = *index }),
		each(b.objs.Rings, func(id uint32, _ *uint32) { h.Rings = append(h.Rings, id) }),
		b.eachVIP(func(v VIP, e xdpVip) {
			h.VIPs[v] = VIPEntry{e.Ring, e.Flags&uint32(xdpVipFlagVIP_QUIC) != 0, e.Flags&uint32(xdpVipFlagVIP_KATRAN) != 0}
		}),
	)
}

// eachSmallID reads the table whose place is the id: most of it is empty.
func (b *Balancer) eachSmallID(f func(id, index uint32)) error {
	elements, release, err := memory[[2]uint32](b.objs.Servers)
	if err != nil {
		return err
	}
	for id, e := range elements {
		if index := e[0]; index != 0 {
			f(uint32(id), index)
		}
	}
	return release()
}

// each calls f for each entry of a table that nobody else writes to, many of them
// with one system call.
func each[K, V any](m *ebpf.Map, f func(K, *V)) error {
	// A hash hands over whole buckets: a batch has to have room for the fullest.
	const batch = 1024
	keys, values := make([]K, batch), make([]V, batch)
	var at ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&at, keys, values, nil)
		for i := range n {
			f(keys[i], &values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // that was all
			return nil
		case err != nil:
			return err
		}
	}
}
