// Package scratch gives tests places of their own, which end with them, and takes away what
// tests have left that were killed. A place has the process in its name: who makes the first
// one looks for those of processes that are gone.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
)

const bpffs = "/sys/fs/bpf"

// The beginnings of names, before the process and a dash.
const (
	dirs = "baton-t" // short: a Unix socket's path has 108 octets
	pins = "baton-test-"
)

// Dir is a directory that every user may enter, with a path short enough for a Unix
// socket below it.
func Dir(t testing.TB) string {
	t.Helper()
	sweepOnce()
	dir, err := os.MkdirTemp("", ours(dirs))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Pins is a directory of the BPF file system.
func Pins(t testing.TB) string {
	t.Helper()
	need.BPFFS(t)
	sweepOnce()
	dir, err := os.MkdirTemp(bpffs, ours(pins))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func ours(prefix string) string { return fmt.Sprintf("%s%d-", prefix, os.Getpid()) }

var sweepOnce = sync.OnceFunc(func() { sweep(os.TempDir(), bpffs) })

// sweep takes away what is left of tests whose process is gone: the generations that a
// supervisor of theirs had, its cgroups and pins, and their own places.
func sweep(tmp, bpffs string) {
	_, own, _ := need.FindCgroup2()
	for _, place := range left(bpffs, pins) {
		os.RemoveAll(place)
	}
	for _, place := range left(tmp, dirs) {
		if sweepInstance(slashless(place)+"-*", own, bpffs) {
			os.RemoveAll(place)
		} // else the next one will
	}
}

// settled is how old a place must be: that its process is not seen may mean that it is in
// another PID namespace, and no test lasts so long.
const settled = 2 * time.Hour

// left are the places in a directory that belong to a process which is gone. What has no
// name as [ours] gives it is somebody else's.
func left(in, prefix string) (all []string) {
	name := regexp.MustCompile("^" + prefix + "([0-9]{1,7})-[0-9]+$")
	entries, _ := os.ReadDir(in)
	for _, e := range entries {
		of := name.FindStringSubmatch(e.Name())
		if of == nil {
			continue
		}
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < settled {
			continue
		}
		if pid, err := strconv.Atoi(of[1]); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			all = append(all, filepath.Join(in, e.Name()))
		}
	}
	return all
}

// sweepInstance takes away what is a supervisor's own, named after its directory as by its
// instanceName, and reports whether nothing is left.
func sweepInstance(pattern, own, bpffs string) (all bool) {
	pinned, _ := filepath.Glob(filepath.Join(bpffs, "baton", pattern))
	for _, dir := range pinned {
		os.RemoveAll(dir)
	}
	if own == "" {
		return true
	}
	generations, _ := filepath.Glob(filepath.Join(own, "baton-"+pattern, "gen-*"))
	for _, group := range generations {
		os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0)
		os.Remove(group) // in vain until they have ended
	}
	bases, _ := filepath.Glob(filepath.Join(own, "baton-"+pattern))
	all = true
	for _, base := range bases {
		all = os.Remove(base) == nil && all
	}
	return all
}

func slashless(path string) string { return strings.ReplaceAll(strings.Trim(path, "/"), "/", "-") }
