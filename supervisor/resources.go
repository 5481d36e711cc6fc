package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/judge"
)

// resourcesOf reads /proc (proc_pid_stat(5), proc_pid_statm(5)).
func resourcesOf(pid int) (r judge.Resources) {
	// The size of the directory is their number since Linux 6.2; to list them
	// takes a system call for every few hundred.
	if info, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		r.Descriptors = int(info.Size())
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)); err == nil {
		if fields := bytes.Fields(data); len(fields) > 1 {
			pages, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			r.Resident = pages * int64(os.Getpagesize())
		}
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		// Field 20, counted as for [spawn.StartTime].
		fields := bytes.Fields(data[max(0, bytes.LastIndexByte(data, ')')):])
		if len(fields) > 18 {
			r.Threads, _ = strconv.Atoi(string(fields[18]))
		}
	}
	var limit unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		r.Limit = int(min(limit.Cur, 1<<30))
	}
	return r
}
