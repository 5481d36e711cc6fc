package proxy

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

const (
	costRounds  = "BATON_TEST_COST"  // how often wrk runs on each variant
	costVariant = "BATON_COST_CHILD" // what a child of the test is
)

// variants are the same proxy four times: without an account, again without, which
// shows how much two of the same differ here, with a ledger that is read as a
// supervisor does, and with a span of OpenTelemetry's SDK for each request and
// another for what goes upstream, exported by OTLP.
var variants = []string{"off", "again", "ledger", "sdk"}

// TestCost measures what the account of requests costs, by runs of wrk that
// alternate between the variants, each against off right before or after it. It
// prints medians, and asserts nothing: the machine may have other things to do.
func TestCost(t *testing.T) {
	if variant := os.Getenv(costVariant); variant != "" {
		costChild(t, variant)
		return
	}
	rounds, err := strconv.Atoi(os.Getenv(costRounds))
	if err != nil {
		t.Skipf("%s is not set: make cost", costRounds)
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer origin.Close()
	var exported atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		exported.Add(n)
	}))
	defer collector.Close()

	children := map[string]*costProxy{}
	for _, v := range variants {
		children[v] = startCostChild(t, v, origin.Listener.Addr().String(), collector.URL)
	}
	stop := make(chan struct{})
	defer close(stop)
	led := children["ledger"].ledger
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
				led.Kept(func(*ledger.Record) {})
				led.Read()
			}
		}
	}()

	type run struct{ rate, cpu float64 }
	measure := func(v string) run {
		c := children[v]
		before := c.cpu(t)
		requests, rate := wrk(t, c.address)
		return run{rate, float64(c.cpu(t)-before) / float64(time.Microsecond) / float64(requests)}
	}
	all, rates, cpu := map[string][]run{}, map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		for _, v := range variants[1:] {
			first, second := "off", v
			if round%2 == 1 {
				first, second = v, "off"
			}
			if v == "sdk" {
				time.Sleep(time.Second) // and it exports beyond its run: nobody is to wait for it
			}
			pair := map[string]run{first: measure(first)}
			pair[second] = measure(second)
			all["off"], all[v] = append(all["off"], pair["off"]), append(all[v], pair[v])
			rates[v] = append(rates[v], pair[v].rate/pair["off"].rate)
			cpu[v] = append(cpu[v], pair[v].cpu/pair["off"].cpu)
		}
		time.Sleep(time.Second)
	}
	load, _ := os.ReadFile("/proc/loadavg")
	t.Logf("%d rounds of 1 s, 32 connections kept alive; load %s", rounds, strings.Join(strings.Fields(string(load))[:3], " "))
	for _, v := range variants {
		var rate, spent []float64
		for _, r := range all[v] {
			rate, spent = append(rate, r.rate), append(spent, r.cpu)
		}
		t.Logf("%-7s %8.0f requests/s  %6.2f µs CPU of the proxy a request", v, median(rate), median(spent))
		if v != "off" {
			t.Logf("%-7s in pairs with off: %.3f of the requests (%s), %.3f of the CPU (%s)", "", median(rates[v]), quartiles(rates[v]), median(cpu[v]), quartiles(cpu[v]))
		}
	}
	t.Logf("%d MB of spans were exported", exported.Load()>>20)
}

func quartiles(all []float64) string {
	sorted := slices.Sorted(slices.Values(all))
	return fmt.Sprintf("half of them %.3f to %.3f", sorted[len(sorted)/4], sorted[len(sorted)*3/4])
}

func median[T cmp.Ordered](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

type costProxy struct {
	cmd     *exec.Cmd
	address string
	ledger  *ledger.Ledger
}

func startCostChild(t *testing.T, variant, origin, collector string) *costProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	l, err := ledger.Create(ledger.Options{Generation: 1, Listeners: []string{"web"}, Routes: []string{"all"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	fd, err := syscall.Dup(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "ledger")
	defer file.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCost$", "-test.v")
	cmd.Env = append(os.Environ(), costVariant+"="+variant, "COST_ORIGIN="+origin, "OTEL_EXPORTER_OTLP_ENDPOINT="+collector)
	cmd.ExtraFiles = []*os.File{socket, file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return &costProxy{cmd, ln.Addr().String(), l}
}

// cpu is what the child has used so far, by its clock (clock_getcpuclockid(3)).
func (c *costProxy) cpu(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^c.cmd.Process.Pid<<3|2), &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

var wrkSays = regexp.MustCompile(`(?s)(\d+) requests in .*Requests/sec: +([\d.]+)`)

func wrk(t *testing.T, address string) (requests int, rate float64) {
	t.Helper()
	out, err := exec.Command("wrk", "-t1", "-c32", "-d1s", "http://"+address+"/").CombinedOutput()
	m := wrkSays.FindStringSubmatch(string(out))
	if err != nil || m == nil || strings.Contains(string(out), "errors") {
		t.Fatalf("wrk: %v\n%s", err, out)
	}
	requests, _ = strconv.Atoi(m[1])
	rate, _ = strconv.ParseFloat(m[2], 64)
	return requests, rate
}

// costChild serves until it is killed.
func costChild(t *testing.T, variant string) {
	cfg := &config.Config{
		Listeners: []config.Listener{{Name: "web", Protocol: config.HTTP, MaxHeaderBytes: 16 << 10}},
		Routes:    []config.Route{{Name: "all", Listeners: []string{"web"}, Upstreams: []config.Backend{{Name: "origin"}}}},
		Upstreams: []config.Upstream{{Name: "origin", Endpoints: []string{os.Getenv("COST_ORIGIN")}, MaxIdle: 64, ConnectTimeout: time.Second}},
	}
	var opts Options
	if variant == "ledger" {
		w, err := ledger.Open(contract.FirstFD + 1)
		if err != nil {
			t.Fatal(err)
		}
		opts.Ledger = w
	}
	g, err := New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(os.NewFile(contract.FirstFD, ""))
	if err != nil {
		t.Fatal(err)
	}
	var handler http.Handler = newHandler(g, cfg.Listeners[0], g.tables["web"])
	if variant == "sdk" {
		exporter, err := otlptracehttp.New(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		tracer := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithSampler(sdk.AlwaysSample())).Tracer("cost")
		handler = spans(handler, tracer)
	}
	s, err := listener.NewHTTP(cfg.Listeners[0], []net.Listener{ln}, g.registry, nil, handler, g.opts.Log)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	select {}
}

// spans makes the two spans of a proxied request, with the attributes that the
// conventions for HTTP ask for.
func spans(next http.Handler, tracer trace.Tracer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, server := tracer.Start(r.Context(), r.Method+" all", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path),
			attribute.String("url.scheme", "http"), attribute.String("server.address", r.Host),
			attribute.String("network.protocol.version", "1.1"), attribute.String("client.address", r.RemoteAddr),
			attribute.String("http.route", "all"), attribute.Int("baton.generation", 1)))
		ctx, client := tracer.Start(ctx, r.Method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
			attribute.String("http.request.method", r.Method), attribute.String("url.full", r.URL.String()),
			attribute.String("server.address", r.Host), attribute.String("baton.upstream", "origin")))
		next.ServeHTTP(w, r.WithContext(ctx))
		client.SetAttributes(attribute.Int("http.response.status_code", http.StatusOK))
		client.End()
		server.SetAttributes(attribute.Int("http.response.status_code", http.StatusOK), attribute.Int64("http.response.body.size", 5))
		server.End()
	})
}
