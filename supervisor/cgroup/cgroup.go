// Package cgroup gives each generation a group of its own in the version 2
// hierarchy: who sends READY=1 from it is believed, and what is left in it when
// the generation has ended is killed.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNone says that this machine shows no version 2 hierarchy to this process.
var ErrNone = errors.New("no cgroup2 file system is mounted")

// Own finds this process's group, wherever the hierarchy is mounted: on its
// own, beside version 1, or in part, in a container. The arguments are what
// /proc/self/mountinfo and /proc/self/cgroup hold.
func Own(mountinfo, cgroups string) (string, error) {
	mount, root, err := find(mountinfo)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(cgroups) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(mount, strings.TrimPrefix(path, strings.TrimSuffix(root, "/"))), nil
		}
	}
	return mount, nil
}

// find returns where the hierarchy is mounted and which group is shown there.
func find(mountinfo string) (mount, root string, err error) {
	for line := range strings.Lines(mountinfo) {
		// 30 24 0:26 ROOT MOUNT options [optional…] - TYPE source superoptions
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) >= 5 && len(kind) > 0 && kind[0] == "cgroup2" {
			return fields[4], fields[3], nil
		}
	}
	return "", "", ErrNone
}

// Base is a group below the supervisor's own, in which groups are made.
type Base struct{ dir string }

// Find returns the directory of this process's own group.
func Find() (string, error) {
	mountinfo, err1 := os.ReadFile("/proc/self/mountinfo")
	cgroups, err2 := os.ReadFile("/proc/self/cgroup")
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	return Own(string(mountinfo), string(cgroups))
}

// MakeBase makes a base, or takes the one that is there and removes the groups
// in it that are empty: those of generations that ended after their supervisor.
func MakeBase(name string) (*Base, error) {
	own, err := Find()
	if err != nil {
		return nil, err
	}
	b := &Base{filepath.Join(own, name)}
	if err := os.Mkdir(b.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	b.sweep()
	return b, nil
}

// sweep removes the groups that are empty.
func (b *Base) sweep() {
	left, _ := filepath.Glob(filepath.Join(b.dir, "gen-*"))
	for _, group := range left {
		os.Remove(group) // refused while a process is in it
	}
}

// Remove removes the base if no process is left in it. What a supervisor that was
// killed had just begun may have been ending still when the base was made.
func (b *Base) Remove() error {
	b.sweep()
	return os.Remove(b.dir)
}

// Has reports whether a process is in the base or in a group of it.
func (b *Base) Has(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	return err == nil && strings.Contains(string(data), "/"+filepath.Base(b.dir)+"/")
}

// Group is one generation's.
type Group struct {
	Dir *os.File
	// Number is the inode of Dir, by which the kernel names the group to us.
	Number uint64

	foreign bool // it is in the base of another supervisor, which has ended
}

// Make makes the group of a generation.
func (b *Base) Make(generation uint64) (*Group, error) {
	path := filepath.Join(b.dir, name(generation))
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	return open(path)
}

// Adopt finds the group in which a generation's process is: where an earlier
// supervisor made it, whose own group may have been another than this one's.
func (b *Base) Adopt(generation uint64, pid int) (*Group, error) {
	mountinfo, err1 := os.ReadFile("/proc/self/mountinfo")
	cgroups, err2 := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	path, err := Own(string(mountinfo), string(cgroups))
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(path, filepath.Join("/", filepath.Base(b.dir), name(generation))) {
		return nil, fmt.Errorf("process %d is in %s, which is not the group of generation %d", pid, path, generation)
	}
	g, err := open(path)
	if err == nil {
		g.foreign = filepath.Dir(path) != b.dir
	}
	return g, err
}

func name(generation uint64) string { return "gen-" + strconv.FormatUint(generation, 10) }

func open(path string) (*Group, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the cgroup: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		dir.Close()
		return nil, fmt.Errorf("stat the cgroup: %w", err)
	}
	return &Group{Dir: dir, Number: st.Ino}, nil
}

// Kill ends every process in the group (cgroup.kill, since Linux 5.14).
func (g *Group) Kill() { os.WriteFile(filepath.Join(g.Dir.Name(), "cgroup.kill"), []byte("1"), 0) }

// Remove kills what is left and removes the group. A process leaves its group
// when it has been reaped, so Remove may be early: then it says false.
func (g *Group) Remove() bool {
	g.Kill()
	err := os.Remove(g.Dir.Name())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false
	}
	if g.foreign {
		os.Remove(filepath.Dir(g.Dir.Name())) // refused while there is another in it
	}
	g.Dir.Close()
	return true
}
