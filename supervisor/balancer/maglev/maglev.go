// Package maglev fills the tables that spread flows over backends: a flow's hash
// selects a slot, the slot names a backend. Backends get slots in proportion to
// their weights, and when one comes or goes nearly all slots of the others stay
// as they were (Eisenbud et al., Maglev, NSDI 2016, section 3.4).
//
// A table depends on nothing but its size and the set of backends. So balancers
// that never speak to each other agree, as long as they know the same set: the
// result for given backends must not change between versions.
package maglev

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"math/big"
	"math/bits"
	"slices"
)

// The sizes of the paper's figures. Both are primes, as a size has to be: only
// then does every step lead through all slots. The larger one moves fewer flows
// and takes ten times the memory.
const (
	Small = 65537
	Large = 655373
)

// Backend is what slots can name.
type Backend struct {
	// Key tells backends apart, and decides which slots one prefers.
	Key string
	// Value is what its slots hold.
	Value uint32
	// Weight is its share relative to the other backends. 0 means no slot.
	Weight uint32
	// Way is [WayOf] the key, for who fills many tables. Fill finds what is missing.
	Way Way
}

// Way is the order in which a backend prefers the slots of tables of one size: from
// a first one always so many further on, around the table's end.
type Way struct{ at, step uint64 } // as in [walker]

// WayOf is the way of a key through tables of so many slots.
func WayOf(key string, slots int) Way {
	h := fnv.New64a()
	h.Write([]byte(key))
	sum, size := h.Sum64(), uint64(slots)
	at, _ := bits.Div64(mix(sum)%size, 0, size)
	step, _ := bits.Div64(mix(sum^0x9e3779b97f4a7c15)%(size-1)+1, 0, size)
	return Way{at + math.MaxUint64/size/2, step}
}

// Fill writes the value of a backend into every slot of the table, whose length
// must be a prime. The order of the backends does not matter. Without any of
// weight above 0 every slot becomes 0.
func Fill(table []uint32, backends []Backend) {
	size := uint64(len(table))
	if !big.NewInt(int64(len(table))).ProbablyPrime(0) { // exact below 2^64
		panic(fmt.Sprintf("maglev: a table of %d slots: the number must be a prime", size))
	}
	clear(table)
	walkers := walkersOf(backends, size)
	if len(walkers) == 0 {
		return
	}
	heaviest := slices.MaxFunc(walkers, func(a, b walker) int { return cmp.Compare(a.weight, b.weight) }).weight
	taken := make([]uint64, size/64+1) // bits: they stay in the nearest cache
	for left := size; ; {
		// In each round the heaviest gets a slot, the others as often as their
		// weight is a part of its: so that backends of all weights find slots they
		// prefer, not only those that come first.
		for i := range walkers {
			w := &walkers[i]
			if w.due += w.weight; w.due < heaviest {
				continue
			}
			w.due -= heaviest
			table[w.next(taken, size)] = w.value
			if left--; left == 0 {
				return
			}
		}
	}
}

// walker leads through all slots in the order in which a backend prefers them. It
// counts in parts of the table, of which there are 2^64: so the table's end needs no
// attention, for there the numbers wrap around. It begins in the middle of a slot, and a
// step is less than one part too short: what as many steps as there are slots lose is
// far less than half a slot.
type walker struct {
	at, step           uint64
	weight, due, value uint32
}

// next is the first slot on the way that nobody has, and takes it.
func (w *walker) next(taken []uint64, size uint64) uint64 {
	for at, step := w.at, w.step; ; {
		slot, _ := bits.Mul64(at, size)
		at += step
		if bit := uint64(1) << (slot % 64); taken[slot/64]&bit == 0 {
			taken[slot/64] |= bit
			w.at = at
			return slot
		}
	}
}

func walkersOf(backends []Backend, size uint64) []walker {
	backends = slices.DeleteFunc(slices.Clone(backends), func(b Backend) bool { return b.Weight == 0 })
	byKey := func(a, b Backend) int { return cmp.Compare(a.Key, b.Key) }
	if !slices.IsSortedFunc(backends, byKey) {
		slices.SortFunc(backends, byKey)
	}
	walkers := make([]walker, len(backends))
	for i, b := range backends {
		if b.Way == (Way{}) {
			b.Way = WayOf(b.Key, int(size))
		}
		walkers[i] = walker{at: b.Way.at, step: b.Way.step, weight: b.Weight, value: b.Value}
	}
	return walkers
}

// mix spreads what differs in a few bits over all of them (the finalizer of
// MurmurHash3): FNV leaves keys that differ in the last octet close together.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
