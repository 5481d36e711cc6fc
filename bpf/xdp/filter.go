package xdp

import "net/netip"

// filterBit is the bit of a VIP's address in the filter: may_be_vip of parse.h.
func filterBit(a netip.Addr) (word int, bit uint64) {
	w := addrOf(a)
	n := ((w[0] ^ w[1] ^ w[2] ^ w[3]) * 0x9e3779b1) >> 20
	return int(n / 64), 1 << (n % 64)
}

// setFilter writes the filter for the VIPs that the tables hold, and for more.
// The program reads single words: what was set before and stays set is never seen
// as not set.
func (b *Balancer) setFilter(more ...netip.Addr) error {
	var f xdpVipFilter
	add := func(a netip.Addr) {
		word, bit := filterBit(a)
		f.Words[word] |= bit
	}
	for _, a := range more {
		add(a)
	}
	if err := b.eachVIP(func(v VIP, _ xdpVip) { add(v.Addr) }); err != nil {
		return err
	}
	return b.objs.Filter.Put(uint32(0), &f)
}
