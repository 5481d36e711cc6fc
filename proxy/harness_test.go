package proxy_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/listener"
)

// TestMain fails on goroutines and descriptors that outlive the tests: a leak
// here is one per release.
func TestMain(m *testing.M) {
	if os.Getenv(asHTTP3Client) != "" {
		runHTTP3Client()
		return
	}
	goroutines, fds := runtime.NumGoroutine(), openFiles()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzing itself leaves a goroutine that waits for signals
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if code == 0 && !within(5*time.Second, func() bool {
		runtime.GC() // ends the pipes that io.Copy between sockets keeps for the next
		return runtime.NumGoroutine() <= goroutines && openFiles() <= fds
	}) {
		fmt.Fprintf(os.Stderr, "leaked: %d goroutines, were %d; %d descriptors, were %d\n",
			runtime.NumGoroutine(), goroutines, openFiles(), fds)
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}

// openFiles counts what leaks one by one; the runtime's own poller stays.
func openFiles() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	n := 0
	for _, e := range entries {
		if link, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(link, "socket:") || strings.HasPrefix(link, "pipe:") {
			n++
		}
	}
	return n
}

func within(limit time.Duration, condition func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	if !within(time.Minute, condition) {
		t.Fatalf("never happened: %s", what)
	}
}

// node is a generation under test, with one http and one tcp listener.
type node struct {
	*proxy.Generation
	web, raw string // addresses
	udp      string // of web's datagrams

	t        testing.TB
	sockets  map[string]net.Listener
	term     context.CancelFunc // the first SIGTERM
	lastCall func()             // the second
	done     chan struct{}
	tally    listener.Tally // once done is closed

	mu     sync.Mutex
	states []string // what the supervisor was told
}

// start runs a generation whose web listener goes to web, and raw to raw.
// Either may be empty. change may edit the configuration.
func start(t testing.TB, web, raw string, change ...func(*config.Config)) *node {
	t.Helper()
	return startWith(t, func(*proxy.Options) {}, web, raw, change...)
}

// startWith is start with options of the generation.
func startWith(t testing.TB, options func(*proxy.Options), web, raw string, change ...func(*config.Config)) *node {
	t.Helper()
	return startOn(t, func(string) net.Listener { return listen(t) }, options, web, raw, change...)
}

// successor runs a generation on the sockets of another.
func (n *node) successor(web, raw string, change ...func(*config.Config)) *node {
	n.t.Helper()
	shared := func(name string) net.Listener {
		f, err := n.sockets[name].(*net.TCPListener).File()
		if err != nil {
			n.t.Fatal(err)
		}
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil {
			n.t.Fatal(err)
		}
		return ln
	}
	return startOn(n.t, shared, func(*proxy.Options) {}, web, raw, change...)
}

func startOn(t testing.TB, socket func(name string) net.Listener, options func(*proxy.Options), web, raw string, change ...func(*config.Config)) *node {
	t.Helper()
	cfg := &config.Config{Release: config.Release{DrainTimeout: time.Minute}}
	if web != "" {
		cfg.Listeners = append(cfg.Listeners, config.Listener{Name: "web", Protocol: config.HTTP, MaxHeaderBytes: 16 << 10})
		cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Name: "origin", Endpoints: []string{web}, MaxIdle: 64, ConnectTimeout: time.Second})
		cfg.Routes = append(cfg.Routes, config.Route{Name: "web", Listeners: []string{"web"}, Upstreams: []config.Backend{{Name: "origin"}}})
	}
	if raw != "" {
		cfg.Listeners = append(cfg.Listeners, config.Listener{Name: "raw", Protocol: config.TCP})
		cfg.Upstreams = append(cfg.Upstreams, config.Upstream{Name: "echo", Endpoints: []string{raw}, ConnectTimeout: time.Second})
		cfg.Routes = append(cfg.Routes, config.Route{Name: "raw", Listeners: []string{"raw"}, Upstreams: []config.Backend{{Name: "echo"}}})
	}
	for _, c := range change {
		c(cfg)
	}
	n := &node{t: t, sockets: make(map[string]net.Listener), done: make(chan struct{})}
	opts := proxy.Options{Generation: 7, Notify: func(_ context.Context, state ...string) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.states = append(n.states, strings.Join(state, "\n"))
		return nil
	}}
	options(&opts)
	g, err := proxy.New(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	n.Generation = g
	sockets := contract.Passed{TCP: make(map[string][]net.Listener), UDP: make(map[string][]*net.UDPConn)}
	for _, l := range cfg.Listeners {
		if l.HasDatagrams() {
			address := l.Address
			if address == "" {
				address = "127.0.0.1:0"
			}
			c, err := net.ListenPacket("udp", address)
			if err != nil {
				t.Fatal(err)
			}
			sockets.UDP[l.Name], n.udp = []*net.UDPConn{c.(*net.UDPConn)}, c.LocalAddr().String()
		}
		if !l.Protocol.HasStreams() {
			continue
		}
		ln := socket(l.Name)
		sockets.TCP[l.Name], n.sockets[l.Name] = []net.Listener{ln}, ln
		switch l.Name {
		case "web":
			n.web = ln.Addr().String()
		case "raw":
			n.raw = ln.Addr().String()
		}
	}
	if err := g.Listen(sockets); err != nil {
		t.Fatal(err)
	}
	ctx, term := context.WithCancel(context.Background())
	lastCall := make(chan struct{})
	n.term, n.lastCall = term, sync.OnceFunc(func() { close(lastCall) })
	go func() {
		defer close(n.done)
		n.tally = g.Run(ctx, lastCall)
	}()
	t.Cleanup(func() {
		term()
		n.lastCall()
		<-n.done
	})
	return n
}

// drained waits for the end and compares what was cut.
func (n *node) drained(want listener.Tally) {
	n.t.Helper()
	select {
	case <-n.done:
	case <-time.After(15 * time.Second):
		n.t.Fatalf("not drained; left: %s", n.Counts())
	}
	if n.tally != want {
		n.t.Errorf("tally %+v, want %+v", n.tally, want)
	}
}

// told says whether the supervisor has seen an assignment.
func (n *node) told(assignment string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.states {
		if strings.Contains("\n"+s+"\n", "\n"+assignment+"\n") {
			return true
		}
	}
	return false
}

// stop begins the drain and waits until nothing more is accepted.
func (n *node) stop() {
	n.t.Helper()
	before := n.Counts()[listener.New]
	n.term()
	for _, address := range []string{n.web, n.raw} {
		if address == "" {
			continue
		}
		eventually(n.t, "socket "+address+" closed", func() bool {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return true
			}
			conn.Close()
			return false
		})
	}
	// The connections made just now may have been accepted.
	eventually(n.t, "they are gone", func() bool { return n.Counts()[listener.New] <= before })
}

func listen(t testing.TB) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// origin runs an HTTP server behind the proxy and returns its address.
func origin(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.Listener.Addr().String()
}

// serveTCP runs f for each connection and returns the address.
func serveTCP(t testing.TB, f func(*net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	var open sync.WaitGroup
	go func() {
		for {
			conn, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			open.Go(func() {
				defer conn.Close()
				f(conn)
			})
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		open.Wait()
	})
	return ln.Addr().String()
}

// client is one connection to the proxy on which every byte is ours.
type client struct {
	*net.TCPConn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{conn.(*net.TCPConn), t, bufio.NewReader(conn)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

func (c *client) get(path string) { c.send("GET " + path + " HTTP/1.1\r\nHost: a.example\r\n\r\n") }

// response reads one response with its body.
func (c *client) response() (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("response: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("body: %v", err)
	}
	return res, string(body)
}

// ended checks that the proxy has ended the stream, cleanly.
func (c *client) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		c.t.Fatalf("read %q, %v; want the end of the stream", b, err)
	}
}
