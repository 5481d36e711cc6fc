package state

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Running is a supervisor that works in a runtime directory of this host.
type Running struct {
	PID        int
	RuntimeDir string
	Record     Record
}

// AllRunning finds the supervisors of this host by the locks that they hold. Those that
// the caller may not look into, or whose directories it does not see, are left out.
func AllRunning() (all []Running) {
	locks, err := os.ReadFile("/proc/locks") // see proc(5)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(locks)) {
		// 7: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
		words := strings.Fields(line)
		if len(words) < 5 || words[1] != "FLOCK" || words[3] != "WRITE" {
			continue
		}
		pid, err := strconv.Atoi(words[4])
		if err != nil || pid <= 0 {
			continue
		}
		files, _ := filepath.Glob("/proc/" + words[4] + "/fd/*")
		for _, file := range files {
			path, err := os.Readlink(file)
			if err != nil || filepath.Base(path) != lockName {
				continue
			}
			dir := filepath.Dir(path)
			if _, err := os.Stat(In(dir).path); err != nil {
				continue
			}
			found := Running{PID: pid, RuntimeDir: dir}
			if found.Record, err = In(dir).Load(); err != nil {
				continue
			}
			if !slices.ContainsFunc(all, func(r Running) bool { return r.PID == pid && r.RuntimeDir == dir }) {
				all = append(all, found)
			}
		}
	}
	return all
}
