// Package foreign runs other people's servers as generations: what the contract
// asks of them is what systemd asks of a socket-activated notify service, so a
// server that works there works here, unchanged.
//
// BATON_RELEASES is the number of releases, 5 without it.
package foreign

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
)

const asServer = "serve-the-go-way"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asServer {
		if err := goServer(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(node.Main(m))
}

// goServer is a socket-activated server as one writes it in Go.
func goServer() error {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("no sockets for process %d", os.Getpid())
	}
	l, err := net.FileListener(os.NewFile(3, "web"))
	if err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getpid()) })}
	go server.Serve(l)
	manager, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	if _, err := io.WriteString(manager, "READY=1"); err != nil {
		return err
	}
	<-stop.Done()
	return server.Shutdown(context.Background())
}

func TestNodeJS(t *testing.T) {
	need.Tool(t, "node", "nodejs")
	// Node.js has no datagram sockets in the file system: a helper speaks for it.
	need.Tool(t, "systemd-notify", "systemd")
	releaseUnderLoad(t, "node", public(t, "server.js"))
}

func TestGunicorn(t *testing.T) {
	need.Tool(t, "gunicorn", "gunicorn")
	app := public(t, "app.py")
	releaseUnderLoad(t, "gunicorn", "--worker-class", "gthread", "--threads", "8", "--keep-alive", "5",
		"--chdir", filepath.Dir(app), "app:application")
}

func TestGo(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	releaseUnderLoad(t, exe, asServer)
}

// public copies a file to where the user nobody can read it.
func public(t *testing.T, name string) string {
	t.Helper()
	dir := publicDir(t)
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "baton-foreign-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func releases(t *testing.T) int {
	t.Helper()
	text := cmp.Or(os.Getenv("BATON_RELEASES"), "5")
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BATON_RELEASES=%q is not a number of releases", text)
	}
	return n
}

// releaseUnderLoad replaces a server by itself while clients keep their
// connections busy, and judges what they saw. Clients with a bound of their own,
// as pools and other proxies have, leave within release.linger. Those that never
// leave meet what the server does when it is told to stop.
func releaseUnderLoad(t *testing.T, command ...string) {
	t.Run("clients that leave", func(t *testing.T) {
		load := release(t, time.Minute, 100, command...)
		if n := load.raced.Load(); n != 0 {
			t.Errorf("%d kept connections were closed under a request", n)
		}
	})
	if os.Getenv("BATON_RELEASES") != "" { // for the figure; it shows the servers, not Baton
		t.Run("clients that stay", func(t *testing.T) { release(t, 0, 1<<30, command...) })
	}
}

func release(t *testing.T, linger time.Duration, most int, command ...string) *load {
	n := releases(t)
	settings := demo.Settings{Config: fmt.Sprintf(config, linger), Command: command}
	running := node.Start(t, demo.Place{}, settings)
	file, err := running.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	load := &load{address: running.HTTP.String(), most: most}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() { load.keepAlive(ctx) })
	}
	for range 2 {
		clients.Go(func() { load.connectAnew(ctx) })
	}
	for i := range n {
		if r, err := running.Release(t.Context(), file); err != nil || r.Outcome != "passed" {
			t.Errorf("release %d of %d: %+v, %v", i+1, n, r, err)
			break
		}
	}
	stop()
	clients.Wait()

	t.Logf("%d releases: %v", n, load)
	if load.answered.Load() == 0 || load.reused.Load() == 0 {
		t.Error("there was no load")
	}
	if load.newFailed.Load() != 0 {
		t.Errorf("%d new connections failed: that is the steering's fault", load.newFailed.Load())
	}
	if load.cut.Load() != 0 {
		t.Errorf("%d answers were cut in the middle", load.cut.Load())
	}
	for _, err := range load.errors {
		t.Log(err)
	}
	if n := len(load.servers); n < 2 {
		t.Errorf("%d servers answered: none was replaced", n)
	}
	return load
}

// config is that of a node whose generations are somebody else's server; the
// verb stands for release.linger.
const config = `node: {name: foreign, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: ""}
listeners:
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: none}]}
upstreams:
  - {name: none, endpoints: ["127.0.0.1:9"]}
proxy: {command: [{{range $i, $word := .Command}}{{if $i}}, {{end}}{{printf "%%q" $word}}{{end}}], user: nobody, nonblocking: false, baton: false}
release: {linger: %v, max_generations: 64, drain_timeout: 10s, verify: {window: 100ms}}
shutdown: {lead: 0s}
`
