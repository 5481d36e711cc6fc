package supervisor

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == asGeneration:
		generationMain(os.Args[2])
		return
	case len(os.Args) == 2 && os.Args[1] == "check":
		return // a generation that likes every configuration
	}
	need.RootForAll("a supervisor loads BPF programs")
	before := descriptors()
	code := m.Run()
	if code == 0 {
		code = leaked(before)
	}
	os.Exit(code)
}

func descriptors() map[string]string {
	all := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.Contains(to, "/proc/") {
			all[e.Name()] = to
		}
	}
	return all
}

// leaked fails the run when a descriptor or a goroutine is left: here it would
// be one a release.
func leaked(before map[string]string) int {
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(5 * time.Second)
	for {
		var left []string
		for fd, to := range descriptors() {
			if _, ok := before[fd]; !ok && !strings.HasPrefix(to, "anon_inode:[event") {
				left = append(left, fd+" → "+to)
			}
		}
		if len(left) == 0 && runtime.NumGoroutine() <= 4 {
			return 0
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "FAIL: left behind: descriptors %v, goroutines:\n%s\n", left, buf[:runtime.Stack(buf, true)])
			return 1
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// node is a supervisor under test.
type node struct {
	t    *testing.T
	s    *Supervisor
	conf *config.Config
	addr string
	log  *logBuffer
	stop func() error
}

type logBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func freePort(t *testing.T, network string) int {
	t.Helper()
	l, err := net.Listen(network, "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// conf makes a configuration whose generations behave as said.
func conf(t *testing.T, how string, change ...func(*config.Config)) *config.Config {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := scratch.Dir(t) // generations pass through it to the notify socket
	c := config.Default()
	c.RuntimeDir, c.Admin = filepath.Join(dir, "run"), config.Admin{}
	c.Node = config.Node{Name: "test", ServerID: 7}
	c.Listeners = []config.Listener{{
		Name: "web", Address: fmt.Sprintf("127.0.0.1:%d", freePort(t, "tcp4")), Protocol: config.HTTP,
		Workers: 1, WorkerChoice: config.ByHash, Backlog: 1024,
	}}
	c.Proxy = config.Proxy{Command: []string{exe, asGeneration, how}, User: "nobody", Nonblocking: true}
	c.Release.ReadyTimeout, c.Release.DrainTimeout = 2*time.Second, 5*time.Second
	c.Release.Ramp = nil
	c.Release.Verify.Window = 200 * time.Millisecond
	c.Shutdown.Lead = 0
	for _, f := range change {
		f(c)
	}
	return c
}

// like is the same node's configuration for a candidate that behaves otherwise.
func (n *node) like(how string, change ...func(*config.Config)) *config.Config {
	next := *n.conf
	next.Proxy.Command = []string{n.conf.Proxy.Command[0], asGeneration, how}
	for _, f := range change {
		f(&next)
	}
	return &next
}

// serve starts a supervisor and waits for its first generation.
func serve(t *testing.T, c *config.Config, change ...func(*Options)) *node {
	t.Helper()
	n, err := tryServe(t, c, change...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryServe(t *testing.T, c *config.Config, change ...func(*Options)) (*node, error) {
	t.Helper()
	n := &node{t: t, conf: c, addr: c.Listeners[0].Address, log: new(logBuffer)}
	serving := make(chan struct{})
	o := Options{
		Config: c, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Serving: func() { close(serving) },
		Reached: func(transition string) {
			switch file := filepath.Join(c.RuntimeDir, shifted); {
			case strings.HasSuffix(transition, " stored"):
				os.WriteFile(file, nil, 0o644)
			case transition == "validate ends":
				os.Remove(file)
			}
		},
	}
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	n.s = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, nil) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			t.Log(n.log.String())
		}
	})
	select {
	case <-serving:
		return n, nil
	case err := <-ended:
		ended <- err
		return nil, err
	}
}

// release runs a release of the configuration given, without a file between.
func (n *node) release(c *config.Config, req Request) Result {
	n.t.Helper()
	r, err := n.enqueue(c, req)
	if err != nil {
		n.t.Fatal(err)
	}
	res, err := r.wait(context.Background())
	if err != nil {
		n.t.Fatal(err)
	}
	return res
}

func (n *node) enqueue(c *config.Config, req Request) (*release, error) {
	what, err := n.s.cook(c, "(test)", req)
	if err != nil {
		return nil, err
	}
	return n.s.enqueue("command", req, what)
}

// get asks on a new connection who serves.
func (n *node) get(path string) (string, error) {
	conn, err := net.DialTimeout("tcp", n.addr, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, path)
}

func ask(conn net.Conn, path string) (string, error) {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// load asks on new connections until stopped and reports the failures.
func (n *node) load() (stop func() (ok, failed int64)) {
	var done atomic.Bool
	var ok, failed atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !done.Load() {
				if _, err := n.get("/"); err != nil {
					n.t.Logf("client: %v", err)
					failed.Add(1)
				} else {
					ok.Add(1)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	return func() (int64, int64) {
		done.Store(true)
		clients.Wait()
		return ok.Load(), failed.Load()
	}
}

// eventually waits for a condition that somebody else brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) generation(id uint64) *GenerationStatus {
	for _, g := range n.s.Status().Generations {
		if g.ID == id {
			return &g
		}
	}
	return nil
}
