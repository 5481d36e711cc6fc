package release

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// sample is what the supervisor holds at one moment.
type sample struct {
	release                                        int
	descriptors, goroutines, threads, pins, groups int
	kilobytes                                      int // resident set
}

// TestThousandReleases releases as fast as it can, under a light load, and
// wants the supervisor to hold no more after the last release than after the
// first hundred. BATON_TEST_SOAK=1 asks for it; BATON_SOAK_PLOT names a file
// for the plot.
func TestThousandReleases(t *testing.T) {
	if os.Getenv("BATON_TEST_SOAK") == "" {
		t.Skip("takes minutes; make soak runs it")
	}
	const releases, warm = 1000, 100
	settings := demo.Settings{MaxGenerations: 64}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	load := node.Load(t, n)
	load.Slow = time.Second
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { load.Run(ctx) })
	defer clients.Wait()
	defer stop()

	// quiet waits until the drains are over, so that samples compare.
	quiet := func() {
		node.Eventually(t, "old generations to end", func() bool {
			s, err := n.Status(t.Context())
			return err == nil && len(s.Generations) == 1 && s.Release == nil
		})
	}
	var samples []sample
	began := time.Now()
	var releasing time.Duration
	for i := 1; i <= releases; i++ {
		start := time.Now()
		r, err := n.ReleaseUnwatched(t.Context(), file)
		releasing += time.Since(start)
		if err != nil {
			t.Fatal(err)
		}
		if r.Outcome != "passed" {
			t.Fatalf("release %d %s: %s", i, r.Outcome, r.Reason)
		}
		if i%50 == 0 {
			quiet()
			samples = append(samples, take(t, n, i))
			t.Logf("%+v", samples[len(samples)-1])
		}
	}
	t.Logf("%d releases in %v, %v each (the rest is waiting for drains)", releases, time.Since(began).Round(time.Second), (releasing / releases).Round(time.Millisecond))
	stop()
	clients.Wait()
	for _, op := range load.Ops() {
		if op.Err != nil {
			t.Errorf("%s: %v", op.Kind, op.Err)
		}
	}

	var base sample
	for _, s := range samples {
		if s.release == warm {
			base = s
		}
	}
	last := samples[len(samples)-1]
	grown := func(what string, from, to, slack int) {
		if to > from+slack {
			t.Errorf("%s grew from %d to %d over %d releases", what, from, to, releases-warm)
		}
	}
	// A few goroutines and descriptors belong to the request that asks.
	grown("descriptors", base.descriptors, last.descriptors, 4)
	grown("goroutines", base.goroutines, last.goroutines, 4)
	grown("threads", base.threads, last.threads, 8)
	grown("pins", base.pins, last.pins, 0)
	grown("cgroups", base.groups, last.groups, 0)
	// The history of releases fills to its bound; the heap breathes.
	grown("resident memory in KiB", base.kilobytes, last.kilobytes, base.kilobytes/4)
	if path := os.Getenv("BATON_SOAK_PLOT"); path != "" {
		if err := os.WriteFile(path, plot(samples), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// take reads what the supervisor holds.
func take(t *testing.T, n *demo.Node, release int) sample {
	t.Helper()
	s := sample{release: release}
	dir := fmt.Sprintf("/proc/%d", n.PID())
	s.descriptors, s.threads = entries(t, dir+"/fd"), entries(t, dir+"/task")
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			s.kilobytes, _ = strconv.Atoi(f[1])
		}
	}
	resp, err := http.Get("http://" + n.Admin() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics := readAll(t, resp.Body)
	for line := range strings.Lines(metrics) {
		if text, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			s.goroutines, _ = strconv.Atoi(strings.TrimSpace(text))
		}
	}
	s.pins, s.groups = found(t, "/sys/fs/bpf/baton/*", n), found(t, "/sys/fs/cgroup*/baton-*", n)+found(t, "/sys/fs/cgroup/*/baton-*", n)
	return s
}

func entries(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// found counts everything below the directories that belong to the node.
func found(t *testing.T, pattern string, of *demo.Node) (n int) {
	t.Helper()
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if !strings.Contains(dir, filepath.Base(of.Dir)) {
			continue
		}
		filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
			if err == nil && (d.IsDir() || strings.HasPrefix(dir, "/sys/fs/bpf")) {
				n++
			}
			return nil
		})
	}
	return n
}
