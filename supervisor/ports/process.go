package ports

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// FindProcesses fills in who has a descriptor of each holder. Processes end
// while they are looked at, and some are not ours to see: those are left out.
func FindProcesses(holders []Holder) error {
	if len(holders) == 0 {
		return nil
	}
	byLink := make(map[string]*Holder, len(holders))
	for i := range holders {
		byLink[fmt.Sprintf("socket:[%d]", holders[i].Inode)] = &holders[i]
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("find the processes that listen: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			link, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil {
				continue
			}
			if h := byLink[link]; h != nil && !h.heldBy(pid) {
				h.Processes = append(h.Processes, Process{PID: pid, Comm: comm(pid)})
			}
		}
	}
	for i := range holders {
		slices.SortFunc(holders[i].Processes, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	}
	return nil
}

func (h *Holder) heldBy(pid int) bool {
	return slices.ContainsFunc(h.Processes, func(p Process) bool { return p.PID == pid })
}

// comm is the process's name as ps shows it, or "?" when it has just ended.
func comm(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(b), "\n")
}
