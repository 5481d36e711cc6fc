package judge

import "fmt"

// Resources is what the main process of a generation holds at one moment; 0 is
// what /proc does not tell.
type Resources struct {
	Descriptors int
	Threads     int
	Resident    int64 // octets
	Limit       int   // RLIMIT_NOFILE, the soft one
}

const (
	// steadily is over how many readings in a row something must have grown, at
	// nearly each and never the other way, to be a leak: a burst of connections
	// makes descriptors too, and ends.
	steadily = 10
	pauses   = 2
	// What a process may hold beyond what it held at the shift, apart from what
	// its connections explain. Generous: a cache that fills is no leak.
	spareDescriptors       = 1024
	spareThreads           = 512
	spareMemory            = 512 << 20
	descriptorsPerFlow     = 8 // its own, some to upstreams, many where a flow carries streams
	threadsPerFlow         = 2
	memoryTimesAtTheShift  = 4
	descriptorsOfTheLimit  = 0.9
	descriptorsAtItsOrigin = 0.5 // of the limit: who starts above has always been there
)

// leaking says what a process hoards, from the readings since the shift, oldest
// first; peak is the most connections it had at a time. Empty: nothing.
func leaking(seen []Resources, peak uint64) string {
	if len(seen) == 0 {
		return ""
	}
	first, last := seen[0], seen[len(seen)-1]
	if l := float64(last.Limit); l > 0 && float64(last.Descriptors) > descriptorsOfTheLimit*l && float64(first.Descriptors) < descriptorsAtItsOrigin*l {
		return fmt.Sprintf("%d of at most %d descriptors are in use, %d were at the shift", last.Descriptors, last.Limit, first.Descriptors)
	}
	grows := func(of func(Resources) int64) bool {
		if len(seen) <= steadily {
			return false
		}
		paused := 0
		for i := len(seen) - steadily; i < len(seen); i++ {
			switch now, before := of(seen[i]), of(seen[i-1]); {
			case now < before:
				return false
			case now == before:
				paused++
			}
		}
		return paused <= pauses
	}
	for _, kind := range []struct {
		name  string
		of    func(Resources) int64
		bound int64
	}{
		{"descriptors", func(r Resources) int64 { return int64(r.Descriptors) }, int64(first.Descriptors) + spareDescriptors + descriptorsPerFlow*int64(peak)},
		{"threads", func(r Resources) int64 { return int64(r.Threads) }, int64(first.Threads) + spareThreads + threadsPerFlow*int64(peak)},
		{"octets of memory", func(r Resources) int64 { return r.Resident }, first.Resident*(1+memoryTimesAtTheShift) + spareMemory},
	} {
		if kind.of(last) > kind.bound && grows(kind.of) {
			return fmt.Sprintf("%d %s, %d at the shift, rising over the last %d readings; %d connections at most do not explain more than %d",
				kind.of(last), kind.name, kind.of(first), steadily, peak, kind.bound)
		}
	}
	return ""
}
