package spawn

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// StartTime reads when a process started, in clock ticks since boot, which together with its number
// names it: numbers are used again.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

// parseStartTime takes field 22 of /proc/PID/stat. The second field, in
// parentheses, may hold anything, so the count starts behind the last one.
func parseStartTime(stat []byte) (uint64, error) {
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("%q is not what /proc/PID/stat holds", stat)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
