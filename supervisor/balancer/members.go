package balancer

import (
	"cmp"
	"iter"
	"maps"
	"math/bits"
	"slices"

	"github.com/baton-mesh/baton/proxy/config"
)

// members is a set of reals: a bit for each, by its rank among those of the
// configuration. As a string it can be compared, and be a key.
type members string

func (m members) count() int {
	n := 0
	for i := range len(m) {
		n += bits.OnesCount8(m[i])
	}
	return n
}

// ranks are those of the reals in the set, rising.
func (m members) ranks() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range len(m) {
			for octet := m[i]; octet != 0; octet &= octet - 1 {
				if !yield(i*8 + bits.TrailingZeros8(octet)) {
					return
				}
			}
		}
	}
}

// byAddress is the reals of a configuration in the order of their ranks.
func byAddress(reals []config.Real) []config.Real {
	return slices.SortedFunc(slices.Values(reals), func(a, b config.Real) int { return cmp.Compare(a.Address, b.Address) })
}

// vipsOf is the VIPs of a configuration, without their rings, and the reals of each.
func vipsOf(conf *config.Balancer) (entries map[VIP]VIPEntry, reals map[VIP]members) {
	entries, reals = map[VIP]VIPEntry{}, map[VIP]members{}
	ranks := make(map[string]int, len(conf.Reals))
	set := make([]byte, len(conf.Reals)/8+1)
	for rank, r := range byAddress(conf.Reals) {
		ranks[r.Name] = rank
		set[rank/8] |= 1 << (rank % 8)
	}
	all := members(set)
	for _, v := range conf.VIPs {
		of := all
		if len(v.Reals) > 0 {
			clear(set)
			for _, name := range v.Reals {
				rank := ranks[name]
				set[rank/8] |= 1 << (rank % 8)
			}
			of = members(set)
		}
		for _, p := range v.Protocols {
			udp := p == config.UDP
			vip := VIP{Addr: v.Addr(), Port: uint16(v.Port), UDP: udp}
			entries[vip] = VIPEntry{QUIC: udp && v.QUIC, KatranIDs: udp && v.KatranIDs}
			reals[vip] = of
		}
	}
	return entries, reals
}

// configureVIPs gives each VIP its ring. VIPs with the same reals share one, so
// that one write changes them all.
func (b *Balancer) configureVIPs(conf *config.Balancer) {
	entries, reals := vipsOf(conf)
	current := b.vips
	if len(current) == 0 {
		current = b.have.VIPs
	}
	ids, used := keptRings(current, reals), map[uint32]bool{}
	for id := range b.have.Rings {
		used[id] = true
	}
	for _, id := range ids {
		used[id] = true
	}
	b.vips, b.ringReals = map[VIP]VIPEntry{}, map[uint32]members{}
	var next uint32
	for vip, entry := range entries {
		of := reals[vip]
		id, ok := ids[of]
		if !ok {
			for used[next] {
				next++
			}
			id, ids[of], used[next] = next, next, true
		}
		entry.Ring = id
		b.vips[vip], b.ringReals[id] = entry, of
	}
}

// keptRings is the rings that stay, by what they are made of: those whose VIPs all
// have the same reals in the new configuration. Their contents may change in
// place, for no VIP is left behind that would get the reals of another.
func keptRings(current map[VIP]VIPEntry, reals map[VIP]members) map[members]uint32 {
	made := map[uint32]members{}
	spoilt := map[uint32]bool{}
	for vip, entry := range current {
		of, stays := reals[vip]
		first, seen := made[entry.Ring]
		if !stays || seen && first != of {
			spoilt[entry.Ring] = true
		}
		made[entry.Ring] = of
	}
	ids := map[members]uint32{}
	for _, ring := range slices.Sorted(maps.Keys(made)) {
		if _, taken := ids[made[ring]]; !taken && !spoilt[ring] {
			ids[made[ring]] = ring
		}
	}
	return ids
}
