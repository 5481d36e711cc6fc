package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// running is a peer that serves, and what was measured of it.
type running struct {
	peer
	site       site
	server     server
	generation int
	answered   func() int64 // requests, at the origin

	report Peer
}

// Peer is what was measured of a peer.
type Peer struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Replace is the time from the request to replace until new connections are
	// answered by the new generation alone, in ms, without load.
	Replace Figure `json:"replace_ms"`
	// ReplaceCPU is the CPU time that a replacement costs, in ms, without load.
	ReplaceCPU float64     `json:"replace_cpu_ms"`
	Light      *Cost       `json:"light,omitempty"`
	KeepAlive  *Throughput `json:"keep_alive,omitempty"`
	Fresh      *Throughput `json:"new_connections,omitempty"`
	Strict     Strict      `json:"strict"`
	// Alone and Overlap are the memory of one generation, and of two of which
	// the old one still has a stream.
	Alone   Memory  `json:"alone"`
	Overlap *Memory `json:"overlap,omitempty"`
}

// Memory is that of all processes of a peer.
type Memory struct {
	Processes int     `json:"processes"`
	RSS       float64 `json:"rss_mib"`
	PSS       float64 `json:"pss_mib"` // a page shared by n processes counts 1/n
	// CPU is used without any traffic, in percent of one CPU; nil if there was some.
	CPU *float64 `json:"cpu_percent,omitempty"`
}

// run starts a peer and returns when it serves.
func run(ctx context.Context, p peer, t tools, s site) (*running, error) {
	r := &running{peer: p, site: s, generation: 1, report: Peer{Name: p.name}}
	var err error
	if len(p.version) > 0 {
		if r.report.Version, err = versionOf(p.version); err != nil {
			return nil, err
		}
	}
	if r.server, err = p.start(t, s); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := s.await(ctx, 1); err != nil {
		r.server.stop()
		return nil, fmt.Errorf("start %s (log: %s): %w", p.name, filepath.Join(s.Dir, "*.log"), err)
	}
	return r, nil
}

// replace replaces the generation and returns how long it took until new
// connections were answered by the new one alone.
func (r *running) replace(ctx context.Context) (time.Duration, error) {
	r.generation++
	began := time.Now()
	err := r.server.replace(ctx, r.generation)
	if err == nil {
		err = r.site.await(ctx, r.generation)
	}
	if err != nil {
		return 0, fmt.Errorf("replace %s: %w", r.name, err)
	}
	return time.Since(began), nil
}

func (r *running) url() string { return "http://" + r.site.Web + "/small?seed=1" }

// subject has wrk use the peer while it is replaced.
func (r *running) subject(args ...string) subject {
	return subject{
		clients:  wrk(r.url(), args...),
		answered: r.answered,
		replace:  func(ctx context.Context) error { _, err := r.replace(ctx); return err },
		cpu: func() (time.Duration, error) {
			cpu, _, err := treeCPU(r.server.roots()...)
			return cpu + r.server.spent(), err
		},
	}
}

func (r *running) usage() (usage, error) {
	u, err := treeUsage(r.server.roots()...)
	u.cpu += r.server.spent()
	return u, err
}

// settle returns when what was replaced has ended: when the peer has as many
// processes as it began with, and that for a moment.
func (r *running) settle(ctx context.Context, processes int) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for n := 0; n < 3; {
		u, err := r.usage()
		if err != nil {
			return err
		}
		n++
		if u.count > processes {
			n = 0
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s has %d processes, not %d: %w", r.name, u.count, processes, err)
		}
	}
	return nil
}

// idle measures n replacements without load, and the memory of the overlap.
func (r *running) idle(ctx context.Context, n int) error {
	alone, err := r.memory(ctx)
	if err != nil {
		return err
	}
	r.report.Alone = alone
	before, err := r.usage()
	if err != nil {
		return err
	}
	for range n {
		took, err := r.replace(ctx)
		if err != nil {
			return err
		}
		r.report.Replace.add(milliseconds(took))
		if err := r.settle(ctx, alone.Processes); err != nil {
			return err
		}
	}
	after, err := r.usage()
	if err != nil {
		return err
	}
	r.report.ReplaceCPU = milliseconds(after.cpu-before.cpu) / float64(n)
	if r.stopsFirst {
		return nil // one process or the other
	}

	// A stream keeps the old generation.
	c, err := net.Dial("tcp", r.site.Raw)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	echo := make([]byte, 1)
	if err := roundTrip(c, echo); err != nil {
		return fmt.Errorf("stream through %s: %w", r.name, err)
	}
	if _, err := r.replace(ctx); err != nil {
		return err
	}
	overlap, err := r.memory(ctx)
	if err != nil {
		return err
	}
	r.report.Overlap = &overlap
	// Both lived until now, or the figure is of something else.
	if err := roundTrip(c, echo); err != nil {
		return fmt.Errorf("stream through %s after its replacement: %w", r.name, err)
	}
	c.Close()
	return r.settle(ctx, alone.Processes)
}

func roundTrip(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := c.Read(b)
	return err
}

// memory looks at the processes for half a second in which nobody sends anything.
func (r *running) memory(ctx context.Context) (Memory, error) {
	const during = 500 * time.Millisecond
	before, err := r.usage()
	if err != nil {
		return Memory{}, err
	}
	if err := sleep(ctx, during); err != nil {
		return Memory{}, err
	}
	u, err := r.usage()
	m := memoryOf(u)
	cpu := 100 * (u.cpu - before.cpu).Seconds() / during.Seconds()
	m.CPU = &cpu
	return m, err
}

func memoryOf(u usage) Memory {
	return Memory{Processes: u.count, RSS: float64(u.rss) / (1 << 20), PSS: float64(u.pss) / (1 << 20)}
}

// sleep waits, or returns early with the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
