package quic

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/supervisor/demo"
)

const (
	rateConnections = 16 // to each server, kept for the whole run: eight on each of two workers
	rateStreams     = 4  // on each
	rateWindow      = 500 * time.Millisecond
)

// TestRates measures requests of HTTP/3 answered with the kernel's steering, without
// it, and by Caddy: how many a second, and what CPU time each takes of all processes
// on the way. BATON_RATES is in how many rounds, BATON_CADDY is Caddy's executable, or
// 1 to have it built.
//
// Two servers with steering are compared as well, of which nothing differs: what their
// ratio is beside 1 the others cannot be believed to either. In each round a server has
// two windows, placed so that what rises or falls over the round falls on all alike.
func TestRates(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("BATON_RATES"))
	if rounds == 0 {
		t.Skip("measures: make quic")
	}
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	at := origin.HTTPAddress()
	var all []*rated
	for _, name := range []string{"steered", "steered as well", "not steered"} {
		s := startSite(t, siteSettings{origin: at, unsteered: name == "not steered"})
		all = append(all, rate(t, name, s, s.HTTPS.String(), generationPID(t, s), true))
	}
	if program := os.Getenv("BATON_CADDY"); program != "" {
		s := all[0].site
		address, pid := startCaddy(t, s, at, program)
		all = append(all, rate(t, "Caddy", s, address, pid, false))
	}
	t.Logf("%d connections of %d streams, by worker: %v", rateConnections, rateStreams, all[0].workers)
	order := slices.Clone(all)
	for range rounds {
		for _, s := range order {
			s.windows = append(s.windows, s.window(rateWindow))
		}
		slices.Reverse(order)
		for _, s := range order {
			last := &s.windows[len(s.windows)-1]
			*last = last.and(s.window(rateWindow))
		}
		slices.Reverse(order)
		order = append(order[1:], order[0])
	}
	for _, s := range all {
		var rates, cpu []float64
		for _, w := range s.windows {
			rates, cpu = append(rates, w.rate()), append(cpu, w.cpu())
		}
		t.Logf("%-16s %s requests a second, %s µs of CPU a request (%s of the server's)", s.name, median(rates), median(cpu), median(s.own()))
	}
	for _, s := range all[1:] {
		var rates, cpu []float64
		for i, w := range s.windows {
			rates, cpu = append(rates, all[0].windows[i].rate()/w.rate()), append(cpu, all[0].windows[i].cpu()/w.cpu())
		}
		t.Logf("steered / %-16s rate %s, CPU %s", s.name, median(rates), median(cpu))
	}
	all[0].steering(rounds)
}

// steering tells how much of a request's CPU time the program of datagrams takes, by
// the kernel's own clock. That the kernel looks at it costs some ns a run: so it is done
// when everything else has been measured.
func (s *rated) steering(rounds int) {
	t := s.load.t
	const enabled = "/proc/sys/kernel/bpf_stats_enabled"
	before, err := os.ReadFile(enabled)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(enabled, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(enabled, before, 0)
	var runs, took, share []float64
	for range rounds {
		ns, n := s.programs()
		w := s.window(rateWindow)
		nsAfter, nAfter := s.programs()
		// What the program did while the streams began counts, and so do the requests.
		ns, n = nsAfter-ns, nAfter-n
		runs = append(runs, float64(n)/float64(w.all))
		took = append(took, float64(ns)/float64(n))
		share = append(share, 100*float64(ns)/1e3/float64(w.all)/w.cpu())
	}
	t.Logf("steering: %s runs a request, %s ns each, %s %% of the CPU time", median(runs), median(took), median(share))
}

// programs is what the supervisor's programs on sockets' groups have run, in ns and in
// number: the descriptors of them say so.
func (s *rated) programs() (ns, runs uint64) {
	t := s.load.t
	status, err := s.site.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", status.PID))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for _, file := range all {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it is closed
		}
		of := map[string]uint64{}
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok {
				of[name], _ = strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			}
		}
		if of["prog_type"] == unix.BPF_PROG_TYPE_SK_REUSEPORT && !seen[of["prog_id"]] {
			seen[of["prog_id"]] = true
			ns, runs = ns+of["run_time_ns"], runs+of["run_cnt"]
		}
	}
	return ns, runs
}

// rated is a server that is measured, with its clients.
type rated struct {
	name, host string
	load       *load
	site       *site
	pid        int
	clients    []*client
	workers    map[uint8]int // connections by worker
	windows    []window
}

// window is what was counted in a time.
type window struct {
	took, server, others time.Duration // by the clock; CPU time of the server, and of clients and origin
	requests             int64
	all                  int64 // requests, with those of before and after
}

func (w window) and(v window) window {
	return window{w.took + v.took, w.server + v.server, w.others + v.others, w.requests + v.requests, w.all + v.all}
}
func (w window) rate() float64 { return float64(w.requests) / w.took.Seconds() }
func (w window) cpu() float64  { return micros(w.server+w.others) / float64(w.requests) }

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

func (s *rated) own() (all []float64) {
	for _, w := range s.windows {
		all = append(all, micros(w.server)/float64(w.requests))
	}
	return all
}

// rate connects to a server. With even, each of its two workers has as many of the
// connections: which worker gets one is drawn by different hashes, and how they are
// spread is no part of what steering costs.
func rate(t *testing.T, name string, at *site, address string, pid int, even bool) *rated {
	t.Helper()
	s := &rated{name: name, host: strings.Replace(address, "127.0.0.1", "demo.test", 1), load: at.load(t), site: at, pid: pid, workers: map[uint8]int{}}
	s.load.url = "https://" + address
	for tries := 0; len(s.clients) < rateConnections; tries++ {
		if tries > 20*rateConnections {
			t.Fatalf("%s: connections by worker: %v", name, s.workers)
		}
		c := s.load.client(s.load.secure)
		seen := &workerSeen{UDPConn: c.socket.Conn.(*net.UDPConn), batches: ipv4.NewPacketConn(c.socket.Conn)}
		c.socket = &quic.Transport{Conn: seen}
		if err := s.ask(c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		worker := uint8(seen.worker.Load())
		if even && s.workers[worker] == rateConnections/2 {
			c.end()
			continue
		}
		s.workers[worker]++
		s.clients = append(s.clients, c)
		t.Cleanup(c.end)
	}
	return s
}

// workerSeen is a client's socket that sees which worker has answered.
type workerSeen struct {
	*net.UDPConn
	batches *ipv4.PacketConn
	worker  atomic.Int32
}

// ReadBatch is as that of [ipv4.PacketConn]: quic-go asks for it.
func (s *workerSeen) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := s.batches.ReadBatch(ms, flags)
	for _, m := range ms[:max(n, 0)] {
		p := m.Buffers[0][:m.N]
		if len(p) < 7 || p[0]&0x80 == 0 || len(p) < 7+int(p[5]) {
			continue // the source's ID is in long headers alone
		}
		id := p[6+int(p[5]):]
		if len(id) > int(id[0]) {
			if owner, ok := quicid.Decode(id[1 : 1+int(id[0])]); ok {
				s.worker.Store(int32(owner.Worker))
			}
		}
	}
	return n, err
}

// ask sends one request.
func (s *rated) ask(c *client) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.load.url+"/small?seed=1", nil)
	if err != nil {
		return err
	}
	req.Host = s.host
	res, err := c.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK || n != 512 {
		return fmt.Errorf("status %d, %d octets, %v", res.StatusCode, n, err)
	}
	return nil
}

// window keeps every stream busy for a quarter of the time, which is not counted,
// and then for all of it. A request that fails fails the test.
func (s *rated) window(during time.Duration) window {
	var answered atomic.Int64
	var stop atomic.Bool
	var streams sync.WaitGroup
	for _, c := range s.clients {
		for range rateStreams {
			streams.Go(func() {
				for !stop.Load() {
					if err := s.ask(c); err != nil {
						s.load.t.Errorf("%s: %v", s.name, err)
						return
					}
					answered.Add(1)
				}
			})
		}
	}
	time.Sleep(during / 4)
	begin, server, others, n := time.Now(), cpuTime(s.load.t, s.pid), cpuTime(s.load.t, os.Getpid()), answered.Load()
	time.Sleep(during)
	w := window{time.Since(begin), cpuTime(s.load.t, s.pid) - server, cpuTime(s.load.t, os.Getpid()) - others, answered.Load() - n, 0}
	stop.Store(true)
	streams.Wait()
	w.all = answered.Load()
	return w
}

// cpuTime is the CPU time that a process has used, in user space and in the kernel.
// What the kernel does with a datagram on loopback, the steering included, is done in
// the call that sends it, and is the sender's.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil { // MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of include/linux/posix-timers_types.h
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func generationPID(t *testing.T, s *site) int {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil || len(status.Generations) != 1 {
		t.Fatalf("%+v, %v", status, err)
	}
	return status.Generations[0].PID
}

// median is the one in the middle, with the interval that has the true one in 95 of
// 100 cases whatever its distribution: between the ranks that a fair coin's
// heads fall between as often.
func median(of []float64) string {
	sorted := slices.Sorted(slices.Values(of))
	n := len(sorted)
	below, k := math.Pow(0.5, float64(n)), 0 // the chance of at most k heads in n throws
	for term := below; ; k++ {
		term *= float64(n-k) / float64(k+1)
		if below+term > 0.025 {
			break
		}
		below += term
	}
	low, high := sorted[k], sorted[n-1-k]
	digits := 0
	if sorted[n/2] < 100 {
		digits = 3
	}
	return fmt.Sprintf("%.*f [%.*f, %.*f]", digits, sorted[n/2], digits, low, digits, high)
}
