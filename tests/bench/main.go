// Command bench measures what a release costs and what clients notice of it,
// and does the same to other ways of replacing a proxy, in one run on one
// machine. docs/benchmarks.md says what each figure means and how the peers are
// configured.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// plan is how much is measured.
type plan struct {
	rounds int // runs of clients for each peer and load
	ours   int // replacements in a run, of Baton
	others int // of its peers
	light  int // replacements at a light load
	idle   int // replacements without load
	strict int // replacements under strict clients
}

var (
	full  = plan{rounds: 4, ours: 8, others: 2, light: 12, idle: 20, strict: 10}
	short = plan{rounds: 1, ours: 1, others: 1, light: 1, idle: 1, strict: 1}
)

// replacements is how many a run has.
func (p plan) replacements(peer string) int {
	if peer == "baton" {
		return p.ours
	}
	return p.others
}

func main() {
	out := flag.String("o", "", "write the figures to this `file` as JSON")
	isShort := flag.Bool("short", false, "two minutes in place of 22; the figures are then rough")
	rounds := flag.Int("rounds", 0, "`runs` of clients for each peer and load, in place of 4: intervals become narrower by the root of it")
	only := flag.String("peers", "", "measure only these, as `a,b`")
	bin := flag.String("bin", "bin", "`directory` with baton and baton-proxy")
	flag.Parse()
	p := full
	if *isShort {
		p = short
	}
	if *rounds > 0 {
		p.rounds = *rounds
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := bench(ctx, p, *bin, *only)
	if err == nil && *out != "" {
		err = writeJSON(*out, report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	report.print(os.Stdout)
}

func writeJSON(path string, report *Report) error {
	b, err := json.MarshalIndent(report, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// bench measures everything. What it started has ended when it returns.
func bench(ctx context.Context, p plan, bin, only string) (_ *Report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("it loads BPF programs and starts processes of other users, so it must be root")
	}
	chosen, err := choose(only)
	if err != nil {
		return nil, err
	}
	t, err := copyTools(bin)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(t.dir)
	if err := inMemory(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "baton-bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			os.RemoveAll(dir)
			return
		}
		err = fmt.Errorf("%w (logs in %s)", err, dir)
	}()
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	g, err := enterGroup()
	if err != nil {
		return nil, fmt.Errorf("make a cgroup, which counts CPU time: %w", err)
	}
	defer func() { err = errors.Join(err, g.leave()) }()
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer origin.Close()
	report, err := newReport(t)
	if err != nil {
		return nil, err
	}

	progress("the kernel's part of a shift")
	if report.Kernel, err = measureKernel(); err != nil {
		return nil, err
	}
	var serving []*running
	defer func() {
		for _, r := range serving {
			if stopErr := r.server.stop(); err == nil {
				err = stopErr
			}
		}
	}()
	for _, peer := range chosen {
		s, err := newSite(dir, peer.name, origin.HTTPAddress(), origin.EchoAddress())
		if err != nil {
			return nil, err
		}
		r, err := run(ctx, peer, t, s)
		if err != nil {
			return nil, err
		}
		r.answered = origin.Answered
		serving = append(serving, r)
	}
	if err := measure(ctx, p, serving, g, report); err != nil {
		return nil, err
	}
	if report.Secure, err = secure(ctx, p, t); err != nil {
		return nil, err
	}
	if report.Adoptions, err = adoptions(ctx, p, t); err != nil {
		return nil, err
	}
	for _, r := range serving {
		report.Peers = append(report.Peers, r.report)
	}
	report.finish()
	return report, nil
}

// choose returns the peers named, separated by commas, or all.
func choose(names string) ([]peer, error) {
	if names == "" {
		return peers, nil
	}
	var chosen []peer
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(peers, func(p peer) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no peer is called %q", name)
		}
		chosen = append(chosen, peers[i])
	}
	return chosen, nil
}

// measure has the peers take turns, so that what changes on the machine
// meanwhile meets all of them.
func measure(ctx context.Context, p plan, all []*running, g *group, report *Report) error {
	for _, r := range all {
		if err := report.lookAround(); err != nil {
			return err
		}
		progress("%s: %d replacements without load", r.name, p.idle)
		if err := r.idle(ctx, p.idle); err != nil {
			return err
		}
		report.takeReleases(r, &report.Idle)
		progress("%s: %d replacements under strict clients", r.name, p.strict)
		var err error
		if r.report.Strict, err = strict(ctx, r, p.strict); err != nil {
			return err
		}
		report.takeReleases(r, nil)
		if err := r.settle(ctx, r.report.Alone.Processes); err != nil {
			return err
		}
	}
	for _, r := range all {
		if r.strictOnly || r.stopsFirst { // which serves less in a window with a replacement
			continue
		}
		if err := report.lookAround(); err != nil {
			return err
		}
		progress("%s: %d replacements at a light load", r.name, p.light)
		s := r.subject()
		r.report.Light = new(Cost)
		if err := r.report.Light.run(ctx, r.url(), g, s.replace, p.light); err != nil {
			return err
		}
		report.takeReleases(r, nil)
	}
	for round := range p.rounds {
		for _, r := range all {
			if r.strictOnly {
				continue
			}
			if err := report.lookAround(); err != nil {
				return err
			}
			progress("%s: throughput, round %d of %d", r.name, round+1, p.rounds)
			if round == 0 {
				r.report.KeepAlive, r.report.Fresh = new(Throughput), new(Throughput)
			}
			if err := r.report.KeepAlive.run(ctx, r.subject(), p.replacements(r.name)); err != nil {
				return err
			}
			report.takeReleases(r, &report.Loaded)
			if err := r.report.Fresh.run(ctx, r.subject("-H", "Connection: close"), p.replacements(r.name)); err != nil {
				return err
			}
			report.takeReleases(r, nil)
		}
	}
	return report.lookAround()
}

// inMemory has everybody's directories made in memory, where /run is as well: on a
// disk a release would be measured by its fsyncs. TMPDIR decides otherwise.
func inMemory() error {
	const memory = "/dev/shm"
	if info, err := os.Stat(memory); os.Getenv("TMPDIR") != "" || err != nil || !info.IsDir() {
		return nil
	}
	return os.Setenv("TMPDIR", memory)
}

// copyTools copies the executables: somebody may build meanwhile. They are the
// caller's to remove.
func copyTools(from string) (t tools, err error) {
	to, err := os.MkdirTemp("", "baton-bench-bin-")
	if err != nil {
		return t, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(to)
		}
	}()
	if err := os.Chmod(to, 0o711); err != nil {
		return t, err
	}
	for _, name := range []string{"baton", "baton-proxy"} {
		if err := copyFile(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return t, fmt.Errorf("%w (make builds it)", err)
		}
	}
	for _, name := range []string{"nginx", "haproxy", "wrk"} {
		if _, err := exec.LookPath(name); err != nil {
			return t, err
		}
	}
	return tools{dir: to, baton: filepath.Join(to, "baton"), proxy: filepath.Join(to, "baton-proxy")}, nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
