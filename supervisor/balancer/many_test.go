package balancer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/health"
	"github.com/baton-mesh/baton/tests/need"
)

// manyFile is a configuration of so many VIPs and reals. Each VIP has a list of its
// own, of so many reals, so that no two share a ring; 0 is one list for all.
func manyFile(vips, reals, own, weight int) string {
	var b strings.Builder
	b.WriteString("balancer:\n  interfaces: [lo]\n  xdp_mode: generic\n  reals:\n")
	names := make([]string, reals)
	for i := range reals {
		names[i] = fmt.Sprintf("node-%d", i)
		w := 10
		if i == 0 {
			w = weight
		}
		fmt.Fprintf(&b, "    - {name: %s, address: 10.%d.%d.%d, server_id: %d, weight: %d}\n", names[i], 2+i/62500, i/250%250, i%250+1, i+1, w)
	}
	b.WriteString("  vips:\n")
	for i := range vips {
		var list []string
		for j := range own {
			list = append(list, names[(i+j)%reals])
		}
		fmt.Fprintf(&b, "    - {address: 10.9.%d.%d, port: 443, protocols: [tcp], reals: [%s]}\n", i/250, i%250+1, strings.Join(list, ", "))
	}
	return b.String()
}

// manyKernel is the real one where the figures are asked for.
func manyKernel(t *testing.T, ringSize int) Kernel {
	if os.Getenv("BATON_TEST_MANY") == "" {
		return newFakeKernel(ringSize)
	}
	need.Root(t, "loading BPF programs")
	dir := t.TempDir()
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return p
}

// available is the memory of the machine that can be had, in MiB.
func available(t *testing.T) (mib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			fmt.Sscan(rest, &mib)
		}
	}
	return mib >> 10
}

// spent is the time that the CPUs have worked for this process, which a machine that
// others use too does not prolong.
func spent() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestManyVIPs starts, reloads and restarts a balancer of many VIPs and reals.
// BATON_TEST_MANY=1000 takes so many of both, and prints how long that takes.
func TestManyVIPs(t *testing.T) {
	n, size := 40, 251
	if os.Getenv("BATON_TEST_MANY") != "" {
		fmt.Sscan(os.Getenv("BATON_TEST_MANY"), &n)
		size = 0
	}
	for _, own := range []int{0, 10, n - 1} {
		t.Run(fmt.Sprintf("lists of their own of %d", own), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "many.yaml")
			write := func(weight int) {
				if err := os.WriteFile(file, []byte(manyFile(n, n, own, weight)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			load := func() (*config.Balancer, error) {
				c, err := config.Load(file)
				if err != nil {
					return nil, err
				}
				return c.Balancer, nil
			}
			write(10)
			began := time.Now()
			conf, err := load()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("reading the file: %v", time.Since(began))
			k := manyKernel(t, size)
			free := available(t)
			run := func() (*Balancer, func()) {
				began := time.Now()
				serving := make(chan struct{})
				b, err := New(Options{
					Config: conf, Load: load, Kernel: k, Hang: fakeHanger{}, RingSize: size, Serving: func() { close(serving) },
					outside: outside{
						follow: func(ctx context.Context, b *Balancer) error {
							w := world{}
							for _, c := range conf.Reals {
								b.post(func() { b.hopChanged(c.Addr(), w.hop(c.Addr())) })
							}
							<-ctx.Done()
							return nil
						},
						watch: func(ctx context.Context, _ *Balancer) { <-ctx.Done() },
						check: func(ctx context.Context, _ health.Target, _ func(error)) { <-ctx.Done() },
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- b.Run(ctx) }()
				select {
				case <-serving:
				case err := <-ended:
					t.Fatal(err)
				}
				t.Logf("start: %v", time.Since(began))
				return b, func() {
					cancel()
					if err := <-ended; err != nil {
						t.Error(err)
					}
				}
			}
			b, stop := run()
			for _, weight := range []int{9, 10, 9} {
				write(weight)
				before := spent()
				done, err := b.Reload()
				if err != nil || done.Reals != n || done.VIPs != n {
					t.Fatalf("reload: %+v, %v", done, err)
				}
				t.Logf("reload of another weight: %.0f ms, %v of CPU", done.Milliseconds, spent()-before)
			}
			began = time.Now()
			if _, err := b.Drain("node-3", false); err != nil {
				t.Fatal(err)
			}
			t.Logf("drain of a real: %v", time.Since(began))
			var memory runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&memory)
			t.Logf("heap in use after it: %d MiB; less memory available on the machine than before: %d MiB", memory.HeapInuse>>20, free-available(t))
			rings := n
			if own == 0 {
				rings = 1
			}
			if got := b.Tables(); len(got.Rings) != rings || len(got.VIPs) != n || len(got.Reals) != n || len(got.ServerIDs) != n {
				t.Errorf("%d rings, %d VIPs, %d reals, %d ids", len(got.Rings), len(got.VIPs), len(got.Reals), len(got.ServerIDs))
			}
			stop()
			_, stop = run()
			stop()
		})
	}
}
