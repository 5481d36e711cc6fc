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
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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
	os.Exit(m.Run())
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

// need skips the test where something is missing that it cannot do without. In
// CI nothing may be missing.
func need(t *testing.T, there bool, what string) {
	t.Helper()
	switch {
	case there:
	case os.Getenv("CI") == "true":
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

func needProgram(t *testing.T, name, pkg string) {
	t.Helper()
	_, err := exec.LookPath(name)
	need(t, err == nil, name+": apt install "+pkg)
}

func TestNodeJS(t *testing.T) {
	needProgram(t, "node", "nodejs")
	// Node.js has no datagram sockets in the file system: a helper speaks for it.
	needProgram(t, "systemd-notify", "systemd")
	releaseUnderLoad(t, "node", public(t, "server.js"))
}

func TestGunicorn(t *testing.T) {
	needProgram(t, "gunicorn", "gunicorn")
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
// connections busy, and judges what they saw.
func releaseUnderLoad(t *testing.T, command ...string) {
	need(t, os.Geteuid() == 0, "root")
	n := releases(t)
	node := startNode(t, command)
	load := &load{address: node.address}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() { load.keepAlive(ctx) })
	}
	for range 2 {
		clients.Go(func() { load.connectAnew(ctx) })
	}
	for i := range n {
		if out, err := node.baton("release"); err != nil {
			t.Errorf("release %d of %d: %v: %s", i+1, n, err, out)
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
}

// node is a supervisor whose generations are somebody else's server.
type node struct {
	executable, socket, address string
}

// baton runs a command of the supervisor.
func (n *node) baton(args ...string) (string, error) {
	out, err := exec.Command(n.executable, append(args, "--socket", n.socket)...).CombinedOutput()
	return string(out), err
}

func startNode(t *testing.T, command []string) *node {
	t.Helper()
	dir := publicDir(t)
	build := exec.Command("go", "build", "-o", dir, "./supervisor/cmd/baton")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build.Args, err, out)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	n := &node{executable: filepath.Join(dir, "baton"), socket: filepath.Join(dir, "admin.sock"), address: l.Addr().String()}
	var words []string
	for _, w := range command {
		words = append(words, strconv.Quote(w))
	}
	conf := fmt.Sprintf(`node: {name: foreign, server_id: 1}
runtime_dir: %s/run
admin: {socket: %s, address: ""}
listeners:
  - {name: web, address: %q, protocol: http}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: none}]}
upstreams:
  - {name: none, endpoints: ["127.0.0.1:9"]}
proxy: {command: [%s], user: nobody, nonblocking: false, baton: false}
release: {drain_timeout: 10s, verify: {window: 100ms}}
shutdown: {lead: 0s}
`, dir, n.socket, n.address, strings.Join(words, ", "))
	file := filepath.Join(dir, "baton.yaml")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(n.executable, "run", "--config", file)
	cmd.Stderr, cmd.Stdout = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("baton run: %v", err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s", text)
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		out, err := n.baton("status", "-o", "json")
		if err == nil && strings.Contains(out, `"serving"`) {
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not serve: %v: %s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
