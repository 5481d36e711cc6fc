package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/baton-mesh/baton/supervisor/cgroup"
)

// group is a cgroup of this process and of all that it starts from then on. The
// kernel keeps its account in µs, of those that have ended as well.
type group struct{ dir, above string }

// enterGroup makes one. It needs the version 2 hierarchy; no controller has to be on.
func enterGroup() (*group, error) {
	above, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	g := &group{filepath.Join(above, fmt.Sprintf("baton-bench-%d", os.Getpid())), above}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, err
	}
	return g, enter(g.dir)
}

// leave puts this process back. What it has started must have ended.
func (g *group) leave() error {
	return errors.Join(enter(g.above), os.Remove(g.dir))
}

func enter(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

// cpu is what all have used since the group was made.
func (g *group) cpu() (time.Duration, error) {
	path := filepath.Join(g.dir, "cpu.stat")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "usage_usec "); ok {
			µs, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			return time.Duration(µs) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("%s: no usage_usec in it", path)
}
