package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/demo"
)

func TestParseWrk(t *testing.T) {
	const head = "Running 4s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Thread Stats   Avg\n"
	for _, tt := range []struct {
		out      string
		errors   int
		rejected bool
	}{
		{out: head + "  596 requests in 3.10s, 72.63KB read\n"},
		{out: head + "  596 requests in 900.00ms, 72.63KB read\n  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n",
			errors: 54321},
		{out: head + "  0 requests in 3.10s, 0.00B read\n", rejected: true},
		{out: "unable to connect to 127.0.0.1:1 Connection refused\n", rejected: true},
	} {
		errors, err := parseWrk([]byte(tt.out))
		if (err != nil) != tt.rejected || errors != tt.errors {
			t.Errorf("%q: %d errors, %v", tt.out, errors, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	pid, parent, cpu, err := parseStat([]byte("42 (a) (b 1 2) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 70 800 20 0 1 0 99 1 1\n"))
	if pid != 42 || parent != 7 || cpu != 881*tick || err != nil {
		t.Errorf("pid %d, parent %d, cpu %v, %v", pid, parent, cpu, err)
	}
	for _, text := range []string{"", "42 (a) S 7", "42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 x 800 20 0"} {
		if _, _, _, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

// The usage of a tree has that of a child that lives and that of one that has ended.
func TestTreeUsage(t *testing.T) {
	// The shell has used its time, in a child, when it prints; then it waits for its input to end.
	cmd := exec.Command("sh", "-c", "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; echo; read x; exit 0")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	u, err := treeUsage(cmd.Process.Pid)
	if err != nil || u.count != 1 || u.cpu == 0 || u.pss == 0 || u.rss < u.pss {
		t.Errorf("of the shell: %+v, %v", u, err)
	}
	all, err := treeUsage(os.Getpid())
	if err != nil || all.count < 2 || all.rss <= u.rss {
		t.Errorf("of the test: %+v, %v", all, err)
	}
}

func TestSiteWrite(t *testing.T) {
	s := site{Dir: t.TempDir(), Web: "127.0.0.1:1001", Raw: "127.0.0.1:1002", Origin: "127.0.0.1:1003", Echo: "127.0.0.1:1004"}
	read := func(name string, generation int) string {
		t.Helper()
		path, err := s.write(name, generation)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, name := range []string{"nginx.conf", "haproxy.cfg"} {
		for _, want := range []string{s.Web, s.Raw, s.Origin, s.Echo, "Baton-Generation 7"} {
			if text := read(name, 7); !strings.Contains(text, want) {
				t.Errorf("%s has no %s", name, want)
			}
		}
	}
	const option = "\n\toption idle-close-on-response\n"
	if strings.Contains(read("haproxy.cfg", 1), option) {
		t.Errorf("haproxy.cfg has %q", option)
	}
	s.IdleCloseOnResponse = true
	if !strings.Contains(read("haproxy.cfg", 1), option) {
		t.Errorf("haproxy.cfg lacks %q", option)
	}
	if _, err := config.Parse("baton.yaml", []byte(read("baton.yaml", 1)), nil); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(s.Dir, "*.new"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestChoose(t *testing.T) {
	if all, err := choose(""); err != nil || len(all) != len(peers) {
		t.Errorf("all: %d, %v", len(all), err)
	}
	some, err := choose("nginx,baton")
	if err != nil || len(some) != 2 || some[0].name != "nginx" || some[1].name != "baton" {
		t.Errorf("some: %v, %v", some, err)
	}
	if _, err := choose("baton,caddy"); err == nil || !strings.Contains(err.Error(), `"caddy"`) {
		t.Errorf("unknown: %v", err)
	}
}

// A proxy that drops trailers fails clients that want them, unless it is known to.
func TestTallyWithoutTrailers(t *testing.T) {
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: origin.HTTPAddress()})
	proxy.ModifyResponse = func(r *http.Response) error {
		body, err := io.ReadAll(r.Body) // to the trailers, which go
		r.Body.Close()
		r.Body, r.Trailer = io.NopCloser(bytes.NewReader(body)), nil
		r.Header.Del("Trailer")
		return err
	}
	server := httptest.NewServer(proxy)
	defer server.Close()
	load := &demo.Load{HTTP: server.Listener.Addr().String(), Slow: 10 * time.Millisecond,
		Kinds: []demo.Kind{demo.HTTPNew}, Clients: map[demo.Kind]int{demo.HTTPNew: 1}}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { load.Run(ctx); close(ended) }()
	waitFor(t, func() bool { return len(load.Ops()) > 0 })
	stop()
	<-ended
	ops := load.Ops()
	if s := tally(ops, time.Time{}, false); s.Failed[demo.HTTPNew] != len(ops) || s.OK != 0 {
		t.Errorf("with trailers: %+v", s)
	}
	if s := tally(ops, time.Time{}, true); s.Total() != 0 || s.OK != len(ops) {
		t.Errorf("without: %+v", s)
	}
}

func TestTally(t *testing.T) {
	began := time.Now()
	op := func(k demo.Kind, after time.Duration, err error) demo.Op {
		return demo.Op{Kind: k, End: began.Add(after), Err: err}
	}
	lost := errors.New("lost")
	s := tally([]demo.Op{
		op(demo.HTTPNew, -1, nil), op(demo.HTTPNew, -1, lost), op(demo.HTTPNew, 1, lost),
		op(demo.TCP, 1, lost), op(demo.WebSocket, 1, demo.ErrCut), op(demo.TCP, 1, nil),
	}, began, true)
	if s.OK != 2 || s.Before != 1 || s.Total() != 3 || s.Streams != 2 || s.Failed[demo.HTTPNew] != 1 || s.Examples[demo.TCP] != "lost" {
		t.Errorf("%+v", s)
	}
}

// A careful client blames a server for what it could not see, and for no more.
func TestCareful(t *testing.T) {
	for _, tt := range []struct {
		name           string
		head           string // of the one answer on each connection
		closeIdle      bool   // rather than after the next request
		closed, failed bool   // expected
	}{
		{name: "closes idle", head: "Content-Length: 512", closeIdle: true, closed: true},
		{name: "closes after the next request", head: "Content-Length: 512", failed: true},
		{name: "says so", head: "Content-Length: 512\r\nConnection: close", closeIdle: true},
		{name: "answers half", head: "Content-Length: 513", closeIdle: true, failed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go serveOnce(l, "HTTP/1.1 200 OK\r\n"+tt.head+"\r\n\r\n"+strings.Repeat("x", 512), tt.closeIdle)
			var ok, closed, failed atomic.Int64
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			c := careful{address: l.Addr().String(), ok: &ok, closed: &closed, failed: &failed}
			go func() { c.run(ctx); close(ended) }()
			waitFor(t, func() bool {
				return ok.Load()+failed.Load() > 2 && (closed.Load() > 0 || !tt.closed) && (failed.Load() > 0 || !tt.failed)
			})
			stop()
			<-ended
			if closed.Load() > 0 && !tt.closed {
				t.Errorf("%d found closed", closed.Load())
			}
			// A close that comes while the request is sent is a failure by right.
			if failed.Load() > 0 && !tt.failed && !tt.closed {
				t.Errorf("%d failed", failed.Load())
			}
		})
	}
}

// serveOnce answers the first request of each connection, and closes.
func serveOnce(l net.Listener, answer string, closeIdle bool) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			request := make([]byte, 1024)
			c.Read(request)
			io.WriteString(c, answer)
			if !closeIdle {
				c.Read(request)
			}
		}()
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen in 10 s")
		}
	}
}
