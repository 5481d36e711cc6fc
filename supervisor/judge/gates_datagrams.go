package judge

import (
	"maps"
	"slices"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// Of flows that have no connection the kernel keeps no account. What is known of them
// is what the steering program has chosen, and what a generation says of itself: the
// two are compared here.

// strayed: a packet whose connection ID names a generation that lives reached another,
// or another worker of its own; or a flow was begun with a generation that no shift
// names. The packets of a dead one are for another to reset.
func (c *Case) strayed() Finding {
	for g, then := range c.out {
		now, ok := c.now().Sides[g]
		if !ok || !now.Alive {
			continue
		}
		if n := since(now.Runs, then, reuseport.Current) + since(now.Runs, then, reuseport.Ramped); n > 0 {
			return violated("generation %d, which no shift names, was given %d flows", g, n)
		}
	}
	first, now := c.first().Sides, c.now().Sides
	was := func(g uint64, slot uint8) uint64 {
		if g == c.candidate.ID {
			return 0 // what came to it before this watch began was astray, too
		}
		return first[g].Strays[slot]
	}
	bySlot := map[uint8]uint64{} // generations that live
	for g, sd := range now {
		if _, before := first[g]; before && sd.Alive {
			bySlot[sd.Slot] = g
		}
	}
	for g, sd := range now {
		for _, slot := range slices.Sorted(maps.Keys(sd.Strays)) {
			n, owner := less(sd.Strays[slot], was(g, slot)), bySlot[slot]
			switch {
			case n == 0 || owner == 0:
			case owner == g:
				return violated("%d packets of QUIC reached another worker of generation %d than they named", n, g)
			default:
				return violated("%d packets of QUIC that named generation %d reached generation %d", n, owner, g)
			}
		}
	}
	own := now[c.candidate.ID]
	runs, before := own.Runs, first[c.candidate.ID].Runs
	return held("no packet reached another generation than it named; the candidate took %d connections of QUIC and %d flows of UDP, %d packets by connection ID, %d by memory, %d to reset; %d others were nobody's",
		own.QUIC.Accepted, own.UDP.Accepted, since(runs, before, reuseport.Named), since(runs, before, reuseport.Remembered), since(runs, before, reuseport.Reset), since(c.now().NoSlot, c.first().NoSlot, reuseport.Stranger))
}
