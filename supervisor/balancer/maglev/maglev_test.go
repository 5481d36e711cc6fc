package maglev

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// equal is n backends of weight 1.
func equal(n int) []Backend {
	backends := make([]Backend, n)
	for i := range backends {
		backends[i] = Backend{Key: fmt.Sprintf("10.2.%d.%d", i/250, i%250+1), Value: uint32(i + 1), Weight: 1}
	}
	return backends
}

func fill(size int, backends []Backend) []uint32 {
	table := make([]uint32, size)
	Fill(table, backends)
	return table
}

// counts is how many slots each value has.
func counts(table []uint32) map[uint32]int {
	n := map[uint32]int{}
	for _, v := range table {
		n[v]++
	}
	return n
}

func TestSharesFollowWeights(t *testing.T) {
	backends := equal(5)
	for i, weight := range []uint32{1, 2, 0, 10, 100} {
		backends[i].Weight = weight
	}
	n := counts(fill(Small, backends))
	for _, b := range backends {
		want := float64(b.Weight) / 113 * Small
		if got := float64(n[b.Value]); got < want-2 || got > want+2 {
			t.Errorf("weight %d has %v slots, want %.0f", b.Weight, got, want)
		}
	}
	if n[0] != 0 {
		t.Errorf("%d slots name nobody", n[0])
	}
	n = counts(fill(Small, equal(1000)))
	for _, b := range equal(1000) {
		if got := n[b.Value]; got != Small/1000 && got != Small/1000+1 {
			t.Errorf("of 1,000 equal ones %s has %d slots", b.Key, got)
		}
	}
}

func TestEveryPrimeSizeIsFilled(t *testing.T) {
	for _, size := range []int{2, 3, 5, 251, 4093} {
		for _, backends := range []int{1, 2, 3, 300} {
			if n := counts(fill(size, equal(backends))); n[0] != 0 {
				t.Errorf("%d slots, %d backends: %d name nobody", size, backends, n[0])
			}
		}
	}
	if n := counts(fill(251, nil)); n[0] != 251 {
		t.Errorf("without a backend %d slots name one", 251-n[0])
	}
	defer func() {
		if recover() == nil {
			t.Error("a size that is no prime was taken")
		}
	}()
	fill(65536, equal(2))
}

// What was in the table, and the order of the file, are not part of the result:
// balancers that took different ways to the same set agree.
func TestTableDependsOnTheSetAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	backends := equal(50)
	for i := range backends {
		backends[i].Weight = rng.Uint32N(10)
	}
	want := fill(Small, backends)
	table := fill(Small, equal(70))
	rng.Shuffle(len(backends), func(i, j int) { backends[i], backends[j] = backends[j], backends[i] })
	Fill(table, backends)
	if !slices.Equal(table, want) {
		t.Error("another order, or another table before, led to another table")
	}
}

// Balancers of different versions stand side by side.
func TestTableOfEveryVersionIsTheSame(t *testing.T) {
	backends := equal(20)
	for i := range backends {
		backends[i].Weight = uint32(i%4 + 1)
	}
	for size, want := range map[int]string{
		Small: "8403e2b6aac1167bc10dd49eaf98cd73",
		Large: "c9853021b613e38045a8c93f98fbc69e",
	} {
		h := sha256.New()
		binary.Write(h, binary.LittleEndian, fill(size, backends))
		if got := hex.EncodeToString(h.Sum(nil)[:16]); got != want {
			t.Errorf("the table of %d slots has the hash %s, want %s: other versions would disagree", size, got, want)
		}
	}
}

// moved is the share of slots whose backend is in both tables and which have another.
func moved(before, after []uint32, gone map[uint32]bool) float64 {
	n := 0
	for i := range before {
		if before[i] != after[i] && !gone[before[i]] {
			n++
		}
	}
	return float64(n) / float64(len(before))
}

func TestFewSlotsMove(t *testing.T) {
	backends := equal(100)
	before := fill(Small, backends)
	for _, b := range backends[:5] {
		without := slices.DeleteFunc(slices.Clone(backends), func(o Backend) bool { return o == b })
		if share := moved(before, fill(Small, without), map[uint32]bool{b.Value: true}); share > 0.02 {
			t.Errorf("without %s %.1f%% of the slots of others move", b.Key, share*100)
		}
	}
	heavier := slices.Clone(backends)
	for i := range heavier {
		heavier[i].Weight = 10
	}
	heavier[7].Weight = 9
	if share := moved(before, fill(Small, heavier), nil); share > 0.02 {
		t.Errorf("with one of 100 a tenth lighter %.1f%% of the slots move", share*100)
	}
}

func BenchmarkFill(b *testing.B) {
	for _, size := range []int{Small, Large} {
		for _, n := range []int{10, 1000} {
			b.Run(fmt.Sprintf("%d/%d", size, n), func(b *testing.B) {
				table, backends := make([]uint32, size), equal(n)
				for b.Loop() {
					Fill(table, backends)
				}
			})
		}
	}
}
