package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/contract"
)

// TestMain lets the test binary be the command.
func TestMain(m *testing.M) {
	if os.Getenv("BATON_PROXY_TEST_MAIN") == "" {
		os.Exit(m.Run())
	}
	if os.Getenv(contract.EnvListenFDs) != "" {
		os.Setenv(contract.EnvListenPID, strconv.Itoa(os.Getpid()))
	}
	main()
}

// command runs baton-proxy.
func command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = []string{"BATON_PROXY_TEST_MAIN=1", "GORACE=atexit_sleep_ms=0"}
	return cmd
}

const configuration = `
node: {name: test, server_id: 1}
listeners:
  - {name: web, address: "127.0.0.1:%d", protocol: http}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["%s"]}
release: {drain_timeout: 20s}
`

// manager stands for the service manager and reads what it is notified of.
func manager(t *testing.T) (address string, next func(prefix string) string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return address, func(prefix string) string {
		t.Helper()
		b := make([]byte, 1000)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			n, err := conn.Read(b)
			if err != nil {
				t.Fatalf("waiting for %s: %v", prefix, err)
			}
			if strings.Contains("\n"+string(b[:n]), "\n"+prefix) {
				return string(b[:n])
			}
		}
	}
}

func TestGenerationServesDrainsAndExits(t *testing.T) {
	proceed := make(chan struct{})
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-proceed
		}
		io.WriteString(w, "hello")
	}))
	defer origin.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	config, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	fmt.Fprintf(config, configuration, ln.Addr().(*net.TCPAddr).Port, origin.Listener.Addr())

	notify, next := manager(t)
	cmd := command("--log-level=debug")
	cmd.ExtraFiles = []*os.File{socket, config}
	cmd.Env = append(cmd.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=web", "BATON_CONFIG_FD=4", "BATON_GENERATION_ID=12", "NOTIFY_SOCKET="+notify)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	socket.Close() // the child's alone now
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer cmd.Process.Kill()

	next("READY=1")
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); string(comm) != "baton-proxy\n" {
		t.Errorf("the process is called %q, %v", comm, err)
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nBaton-Probe: 1\r\n\r\n")
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.Header.Get("Baton-Generation") != "12" {
		t.Fatalf("%v, %v", res, err)
	}
	io.ReadAll(res.Body)
	io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")

	cmd.Process.Signal(syscall.SIGTERM)
	if status := next("STATUS=draining: 1 requests"); !strings.Contains(status, "STOPPING=1") {
		t.Errorf("told %q", status)
	}
	close(proceed)
	if res, err = http.ReadResponse(r, nil); err != nil || !res.Close {
		t.Errorf("%v, %v", res, err)
	}
	conn.Close()
	if got := next("X_BATON_CUT="); !strings.Contains(got, "X_BATON_CUT=0\nX_BATON_IDLE_CLOSED=0") {
		t.Errorf("told %q", got)
	}
	if err := <-exited; err != nil || !strings.Contains(log.String(), `"msg":"request"`) {
		t.Errorf("%v\n%s", err, log.String())
	}
}

func TestSecondSignalIsTheLastCall(t *testing.T) {
	port := freePort(t)
	file := write(t, fmt.Sprintf(configuration, port, "127.0.0.1:9"))
	notify, next := manager(t)
	cmd := command("--config", file)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer cmd.Process.Kill()
	next("READY=1")
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// One response, so that the connection is known to have been accepted.
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusBadGateway {
		t.Fatal(res, err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	next("STATUS=draining: 1 idle")
	cmd.Process.Signal(syscall.SIGTERM)
	if got := next("X_BATON_IDLE_CLOSED="); !strings.Contains(got, "X_BATON_CUT=0\nX_BATON_IDLE_CLOSED=1") {
		t.Errorf("told %q", got)
	}
	if err := <-exited; err != nil {
		t.Error(err)
	}
}

func TestMistakes(t *testing.T) {
	good := fmt.Sprintf(configuration, freePort(t), "127.0.0.1:9")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	busy := fmt.Sprintf(configuration, taken.Addr().(*net.TCPAddr).Port, "127.0.0.1:9")
	tests := []struct {
		name string
		args []string
		env  string
		code int
		want string // on standard error
	}{
		{"check of a good file", []string{"check", "--config", write(t, good)}, "", 0, ""},
		{"check does not bind", []string{"check", "--config", write(t, busy)}, "", 0, ""},
		{"run does", []string{"--config", write(t, busy)}, "", 1, "address already in use"},
		{"check of a bad file", []string{"check", "--config", write(t, strings.Replace(good, "{name: origin}", "{name: nobody}", 1))}, "", 1, "nobody"},
		{"no configuration", nil, "", 1, "BATON_CONFIG_FD"},
		{"bad generation", nil, "BATON_GENERATION_ID=x", 1, "BATON_GENERATION_ID"},
		{"unknown command", []string{"fly"}, "", 2, "usage"},
		{"unknown flag", []string{"--fly"}, "", 2, "usage"},
		{"unknown level", []string{"--log-level=loud"}, "", 2, "log-level"},
		{"version", []string{"version"}, "", 0, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := command(test.args...)
			if test.env != "" {
				cmd.Env = append(cmd.Env, test.env)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("exit %d: %s; want %d, %q", code, stderr.String(), test.code, test.want)
			}
		})
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "baton.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
