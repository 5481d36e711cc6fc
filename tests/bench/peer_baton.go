package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// batonServer is `baton run`, told to release by `baton release`.
type batonServer struct {
	site
	tools
	*child

	mu       sync.Mutex
	commands time.Duration // CPU time of `baton release`
	releases []release
}

// release is what a release took, in milliseconds.
type release struct {
	stages  map[string]float64
	command float64 // from the start of `baton release` to its end
}

func startBaton(t tools, s site) (server, error) { return startSupervisor(t, s, "bpf") }

// startTakeover is Baton where generations share their sockets.
func startTakeover(t tools, s site) (server, error) { return startSupervisor(t, s, "takeover") }

func startSupervisor(t tools, s site, steering string) (server, error) {
	path, err := s.write("baton.yaml", 1)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(t.baton, "run", "--config", path)
	cmd.Env = append(os.Environ(), "BATON_STEERING="+steering)
	c, err := startChild(cmd, path+".log")
	if err != nil {
		return nil, err
	}
	return &batonServer{site: s, tools: t, child: c}, nil
}

func (b *batonServer) replace(ctx context.Context, generation int) error {
	began := time.Now()
	cmd := exec.CommandContext(ctx, b.baton, "--socket", filepath.Join(b.Dir, "run", "admin.sock"),
		"release", "--config", filepath.Join(b.Dir, "baton.yaml"), "--no-verify", "-o", "json")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("baton release: %w: %s%s", err, out, stderr.Bytes())
	}
	r := release{stages: make(map[string]float64), command: milliseconds(time.Since(began))}
	var result demo.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("baton release: %w", err)
	}
	if result.Generation != generation {
		return fmt.Errorf("baton release: generation %d, not %d: %s", result.Generation, generation, out)
	}
	for _, stage := range result.Stages {
		r.stages[stage.Name] = stage.MS
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.releases = append(b.releases, r)
	b.commands += cpuOf(cmd.ProcessState)
	return nil
}

// taken returns the releases since the last call.
func (b *batonServer) taken() []release {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.releases
	b.releases = nil
	return r
}

func (b *batonServer) roots() []int { return []int{b.pid()} }

func (b *batonServer) spent() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.commands
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
