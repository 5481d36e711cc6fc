package ledger

import (
	"math/bits"
	"time"
)

// NumBuckets is how many buckets a histogram has: below 16 µs one a microsecond,
// above that 16 to each power of two, so that a bucket is at most 6.25 % wide.
// The last has everything from 2.3 hours on.
const NumBuckets = cellWords - cBuckets

// Histogram counts durations.
type Histogram struct {
	Count   uint64
	Sum     time.Duration
	Buckets [NumBuckets]uint64
}

// bucketOf is the bucket of a duration.
func bucketOf(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < 16 {
		return int(us)
	}
	power := bits.Len64(us) - 1 // at least 4
	return min(16*(power-3)+int(us>>(power-4))&15, NumBuckets-1)
}

// BucketLow is the shortest duration that bucket i counts.
func BucketLow(i int) time.Duration {
	if i < 16 {
		return time.Duration(i) * time.Microsecond
	}
	power := i/16 + 3
	return time.Duration((uint64(16+i%16))<<(power-4)) * time.Microsecond
}

// Quantile is a duration that a share q of those counted does not exceed, to the
// width of a bucket; 0 if nothing was counted.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.Count == 0 {
		return 0
	}
	rank := uint64(q * float64(h.Count))
	var seen uint64
	for i, n := range h.Buckets {
		if seen += n; seen > rank || seen == h.Count {
			return BucketLow(i + 1)
		}
	}
	return BucketLow(NumBuckets)
}

// Power is i where d is at least 2^i microseconds and less than twice that; 0 for
// what is shorter.
func Power(d time.Duration) int { return max(bits.Len64(uint64(max(d, 0)/time.Microsecond))-1, 0) }

// Below counts the durations of less than 2^power microseconds, for powers from 4 on.
func (h *Histogram) Below(power int) (n uint64) {
	for _, in := range h.Buckets[:min(16*(power-3), NumBuckets)] {
		n += in
	}
	return n
}

// Add counts what another histogram has counted as well.
func (h *Histogram) Add(other *Histogram) {
	h.Count += other.Count
	h.Sum += other.Sum
	for i, n := range other.Buckets {
		h.Buckets[i] += n
	}
}

func (h *Histogram) sub(other *Histogram) {
	h.Count -= other.Count
	h.Sum -= other.Sum
	for i, n := range other.Buckets {
		h.Buckets[i] -= n
	}
}
