package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup is a generation's own group: who sends READY=1 from it is believed,
// and what is left in it when the generation has ended is killed.
type cgroup struct {
	dir    *os.File
	number uint64 // its inode, by which the kernel names it to us
}

// cgroupBase finds where this process may make groups: below its own, in the
// cgroup2 hierarchy, wherever that is mounted.
func cgroupBase(instance string) (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	var mount string
	for line := range strings.Lines(string(mounts)) {
		// … 4: root within the file system, 5: mount point … - type source options
		fields := strings.Fields(line)
		for i, f := range fields {
			if f == "-" && len(fields) > i+1 && fields[i+1] == "cgroup2" {
				mount = fields[4]
			}
		}
	}
	if mount == "" {
		return "", errors.New("no cgroup2 file system is mounted")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(own)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			base := filepath.Join(mount, path, "baton-"+instance)
			if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return "", err
			}
			return base, nil
		}
	}
	return "", errors.New("this process is in no cgroup2 group")
}

func makeCgroup(base string, generation uint64) (*cgroup, error) {
	path := filepath.Join(base, "gen-"+strconv.FormatUint(generation, 10))
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the cgroup: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		dir.Close()
		return nil, fmt.Errorf("stat the cgroup: %w", err)
	}
	return &cgroup{dir, st.Ino}, nil
}

// kill ends every process in the group (cgroup.kill, since Linux 5.14).
func (c *cgroup) kill() { os.WriteFile(filepath.Join(c.dir.Name(), "cgroup.kill"), []byte("1"), 0) }

// remove kills what is left and removes the group. Processes leave a group
// only when they are reaped, so it may be early: then it says false.
func (c *cgroup) remove() bool {
	c.kill()
	err := os.Remove(c.dir.Name())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false
	}
	c.dir.Close()
	return true
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
