package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// resources is what the main process of a generation holds at one moment; 0 is
// what /proc does not tell.
type resources struct {
	descriptors int
	threads     int
	resident    int64 // octets
	limit       int   // RLIMIT_NOFILE, the soft one
}

// resourcesOf reads /proc (proc_pid_stat(5), proc_pid_statm(5)).
func resourcesOf(pid int) (r resources) {
	// The size of the directory is their number since Linux 6.2; to list them
	// takes a system call for every few hundred.
	if info, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		r.descriptors = int(info.Size())
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		if fields := bytes.Fields(data); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			r.resident = pages * int64(os.Getpagesize())
		}
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		// Field 20, counted as for [spawn.StartTime].
		fields := bytes.Fields(data[max(0, bytes.LastIndexByte(data, ')')):])
		if len(fields) > 18 {
			r.threads, _ = strconv.Atoi(string(fields[18]))
		}
	}
	var limit unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		r.limit = int(min(limit.Cur, 1<<30))
	}
	return r
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
func leaking(seen []resources, peak uint64) string {
	if len(seen) == 0 {
		return ""
	}
	first, last := seen[0], seen[len(seen)-1]
	if l := float64(last.limit); l > 0 && float64(last.descriptors) > descriptorsOfTheLimit*l && float64(first.descriptors) < descriptorsAtItsOrigin*l {
		return fmt.Sprintf("%d of at most %d descriptors are in use, %d were at the shift", last.descriptors, last.limit, first.descriptors)
	}
	grows := func(of func(resources) int64) bool {
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
		of    func(resources) int64
		bound int64
	}{
		{"descriptors", func(r resources) int64 { return int64(r.descriptors) }, int64(first.descriptors) + spareDescriptors + descriptorsPerFlow*int64(peak)},
		{"threads", func(r resources) int64 { return int64(r.threads) }, int64(first.threads) + spareThreads + threadsPerFlow*int64(peak)},
		{"octets of memory", func(r resources) int64 { return r.resident }, first.resident*(1+memoryTimesAtTheShift) + spareMemory},
	} {
		if kind.of(last) > kind.bound && grows(kind.of) {
			return fmt.Sprintf("%d %s, %d at the shift, rising over the last %d readings; %d connections at most do not explain more than %d",
				kind.of(last), kind.name, kind.of(first), steadily, peak, kind.bound)
		}
	}
	return ""
}
