package supervisor

import (
	"maps"
	"slices"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// Of flows that have no connection the kernel keeps no account. What is known of them
// is what the steering program has chosen, and what a generation says of itself: the
// two are compared here.

// readDatagrams reads what a generation says of QUIC and UDP.
func (w *watch) readDatagrams(g *generation, sd *side) {
	r, err := g.book.Reading()
	if err != nil || r.Damage != "" {
		return
	}
	sd.strays = r.Strays
	for _, l := range g.recipe.config.Listeners {
		i := slices.IndexFunc(r.Listeners, func(of ledger.ListenerReading) bool { return of.Name == l.Name+contract.UDPSuffix })
		if i < 0 {
			continue
		}
		found := r.Listeners[i].Flows
		if l.Protocol == config.UDP {
			sd.udp = sd.udp.Plus(found)
		} else {
			sd.quic = sd.quic.Plus(found)
		}
		if w.r.isOf(l.Name) {
			sd.moved.datagrams = sd.moved.datagrams.Plus(found)
		}
	}
}

// strayed: a packet whose connection ID names a generation that lives reached another,
// or another worker of its own; or a flow was begun with a generation that no shift
// names. The packets of a dead one are for another to reset.
func (w *watch) strayed() Finding {
	w.reopen()
	for g, then := range w.out {
		now, ok := w.now().sides[g]
		if !ok || !g.alive() {
			continue
		}
		if n := since(now.runs, then, reuseport.Current) + since(now.runs, then, reuseport.Ramped); n > 0 {
			return violated("generation %d, which no shift names, was given %d flows", g.id, n)
		}
	}
	first, now := w.first().sides, w.now().sides
	was := func(g *generation, slot uint8) uint64 {
		if g == w.candidate {
			return 0 // what came to it before this watch began was astray, too
		}
		return first[g].strays[slot]
	}
	bySlot := map[uint8]*generation{}
	for g := range now {
		if _, before := first[g]; before && g.alive() {
			bySlot[g.slot] = g
		}
	}
	for g, sd := range now {
		for _, slot := range slices.Sorted(maps.Keys(sd.strays)) {
			n, owner := less(sd.strays[slot], was(g, slot)), bySlot[slot]
			switch {
			case n == 0 || owner == nil:
			case owner == g:
				return violated("%d packets of QUIC reached another worker of generation %d than they named", n, g.id)
			default:
				return violated("%d packets of QUIC that named generation %d reached generation %d", n, owner.id, g.id)
			}
		}
	}
	own, runs, before := now[w.candidate], now[w.candidate].runs, first[w.candidate].runs
	return held("no packet reached another generation than it named; the candidate took %d connections of QUIC and %d flows of UDP, %d packets by connection ID, %d by memory, %d to reset; %d others were nobody's",
		own.quic.Accepted, own.udp.Accepted, since(runs, before, reuseport.Named), since(runs, before, reuseport.Remembered), since(runs, before, reuseport.Reset), since(w.now().none, w.first().none, reuseport.Stranger))
}
