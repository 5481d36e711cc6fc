package balancer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/baton-mesh/baton/supervisor/balancer/maglev"
)

// want is what the kernel's tables are to hold now, and how long that is true: 0
// means until something happens.
func (b *Balancer) want(now time.Time) (Tables, time.Duration) {
	w := newTables()
	var until time.Duration
	shares := make([]Share, len(b.order))
	for rank, r := range b.order {
		w.Reals[r.index] = r.entry()
		if r.conf.ServerID != 0 {
			w.ServerIDs[r.conf.ServerID] = r.index
		}
		weight, next := r.share(b.conf.Health.SlowStart, now)
		shares[rank] = Share{r.index, weight}
		if next > 0 && (until == 0 || next < until) {
			until = next
		}
	}
	for id, of := range b.ringReals {
		ring := make([]Share, 0, of.count())
		for rank := range of.ranks() {
			if s := shares[rank]; s.Weight > 0 {
				ring = append(ring, s)
			}
		}
		w.Rings[id] = ring
	}
	maps.Copy(w.VIPs, b.vips)
	return w, until
}

// ringsAtOnce bounds the rings that are in memory twice while they are replaced,
// 128 KiB each in the kernel.
const ringsAtOnce = 256

// apply brings the kernel from what it has to w. In this order a packet never
// finds a name without what it names: what is new is written before what points
// to it, and what goes, goes after. What fails is left for the next time.
func (b *Balancer) apply(w Tables) error {
	var errs []error
	try := func(what any, op string, err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %v: %w", op, what, err))
		}
		return err == nil
	}
	have := &b.have
	for index, r := range w.Reals {
		if old, ok := have.Reals[index]; (!ok || old != r) && try(r.Addr, "set real", b.kernel.SetReal(index, r)) {
			have.Reals[index] = r
		}
	}
	changed := map[uint32][]Share{}
	for id, shares := range w.Rings {
		if len(errs) > 0 { // what it names may not be there
			shares = slices.DeleteFunc(slices.Clone(shares), func(s Share) bool { return !b.holds(s.Index) })
		}
		if old, ok := have.Rings[id]; !ok || !slices.Equal(old, shares) {
			changed[id] = shares
		}
	}
	fill := b.fill(changed, w.Reals)
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(changed)), ringsAtOnce) {
		if try(len(ids), "set rings", b.kernel.SetRings(ids, fill)) {
			for _, id := range ids {
				have.Rings[id] = changed[id]
			}
		}
	}
	for vip, entry := range w.VIPs {
		filled, ok := have.Rings[entry.Ring]
		if !ok || !slices.Equal(filled, w.Rings[entry.Ring]) {
			continue // it failed: what it holds may be another's
		}
		if old, ok := have.VIPs[vip]; (!ok || old != entry) && try(vip, "set VIP", b.kernel.SetVIP(vip, entry)) {
			have.VIPs[vip] = entry
		}
	}
	for id, index := range w.ServerIDs {
		if old, ok := have.ServerIDs[id]; (!ok || old != index) && b.holds(index) && try(id, "set server_id", b.kernel.SetServerID(id, index)) {
			have.ServerIDs[id] = index
		}
	}
	for id := range have.ServerIDs {
		if _, ok := w.ServerIDs[id]; !ok && try(id, "delete server_id", b.kernel.DeleteServerID(id)) {
			delete(have.ServerIDs, id)
		}
	}
	for vip := range have.VIPs {
		if _, ok := w.VIPs[vip]; !ok && try(vip, "delete VIP", b.kernel.DeleteVIP(vip)) {
			delete(have.VIPs, vip)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // something may still point to what would go next
	}
	for id := range have.Rings {
		if _, ok := w.Rings[id]; !ok && try(id, "delete ring", b.kernel.DeleteRing(id)) {
			delete(have.Rings, id)
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	for index, r := range have.Reals {
		if _, ok := w.Reals[index]; !ok && try(r.Addr, "delete real", b.kernel.DeleteReal(index)) {
			delete(have.Reals, index)
			b.places.free(index)
		}
	}
	return errors.Join(errs...)
}

// holds reports whether the kernel has a real in the place.
func (b *Balancer) holds(index uint32) bool {
	_, ok := b.have.Reals[index]
	return ok
}

// fill is what writes one of the rings, made of shares in these reals.
func (b *Balancer) fill(rings map[uint32][]Share, reals map[uint32]Real) func(id uint32, table []uint32) {
	backends := make([]maglev.Backend, maxReals)
	for index, r := range reals {
		key := r.Addr.String()
		backends[index] = maglev.Backend{Key: key, Value: index, Way: maglev.WayOf(key, b.ringSize)}
	}
	return func(id uint32, table []uint32) {
		of := make([]maglev.Backend, len(rings[id]))
		for i, s := range rings[id] {
			of[i] = backends[s.Index]
			of[i].Weight = s.Weight
		}
		maglev.Fill(table, of)
	}
}
