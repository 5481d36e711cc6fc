// Package systemd runs what deploy/systemd has under a systemd that is PID 1 of
// namespaces of its own, and does what an operator and bad luck do to it, under load.
package systemd

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// service is baton.service on a machine, with a load on it.
type service struct {
	*machine
	load   *demo.Load
	config string
}

const config = `node: {name: unit, server_id: 1}
runtime_dir: /run/baton
admin: {socket: /run/baton/admin.sock, address: "%[4]s"}
listeners:
  - {name: web, address: "%[1]s", protocol: http}
  - {name: edge, address: "%[2]s", protocol: https, tls: {cert_file: cert.pem, key_file: key.pem}}
  - {name: raw, address: "%[3]s", protocol: tcp}
routes:
  - {name: all, listeners: [web, edge], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: grpc, listeners: [web, edge], match: {path_prefix: /demo.Echo/}, upstreams: [{name: grpc}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
upstreams:
  - {name: origin, endpoints: ["%[5]s"]}
  - {name: grpc, protocol: h2c, endpoints: ["%[5]s"]}
  - {name: echo, endpoints: ["%[6]s"]}
release: {drain_timeout: 1m, verify: {window: 200ms}}
steering: bpf
shutdown: {lead: 200ms}
`

// prepare makes a machine on which baton.service can be started, beside other units.
func prepare(t *testing.T, beside ...string) *service {
	t.Helper()
	m := boot(t, append(beside, "baton.service")...)
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { origin.Close() })
	p := freePorts(t, 4)
	s := &service{machine: m, config: fmt.Sprintf(config, p[0], p[1], p[2], p[3], origin.HTTPAddress(), origin.EchoAddress())}
	s.write("/etc/baton/baton.yaml", s.config)
	if err := demo.WriteCertificate(s.path("/etc/baton"), "unit"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(s.path("/etc/baton"), "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	s.load = &demo.Load{HTTP: p[0], HTTPS: p[1], TCP: p[2], Roots: roots, Slow: time.Second}
	return s
}

// freePorts are addresses that nobody has, below those that the kernel gives to clients.
func freePorts(t *testing.T, n int) (free []string) {
	t.Helper()
	for tries := 0; len(free) < n; tries++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.N(22768))))
		if err == nil {
			defer l.Close()
			free = append(free, l.Addr().String())
		} else if tries > 100 {
			t.Fatal(err)
		}
	}
	return free
}

// status is what the supervisor says; nil: nobody answers.
func (s *service) status() *demo.Status {
	out, err := s.run("baton", "status", "-o", "json")
	if err != nil {
		return nil
	}
	st := new(demo.Status)
	if err := json.Unmarshal([]byte(out), st); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return st
}

// succeeded waits until another supervisor serves than the one that was, and wants the
// same generation to serve.
func (s *service) succeeded(was *demo.Status) *demo.Status {
	s.t.Helper()
	var is *demo.Status
	s.eventually("another supervisor serves", func() bool {
		is = s.status()
		return is != nil && is.PID != was.PID && is.State == "serving" && s.property("baton", "ActiveState") == "active"
	})
	pid := func(st *demo.Status) int { // of who serves
		for _, g := range st.Generations {
			if g.ID == st.Current {
				return g.PID
			}
		}
		return 0
	}
	if is.Current != was.Current || pid(is) == 0 || pid(is) != pid(was) {
		s.t.Errorf("was %+v, is %+v", was, is)
	}
	if main := s.property("baton", "MainPID"); main != strconv.Itoa(is.PID) {
		s.t.Errorf("the main process is %s, and the supervisor %d", main, is.PID)
	}
	return is
}

// The unit as it is shipped. A start with a mistake in the file fails, and is tried until
// that is mended. A reload is a release and answers with its verdict; a supervisor that
// is killed is started again, and one that is restarted, to run another binary, gives
// way; generations serve on, and no client sees any of it. A stop drains, and leaves
// nothing.
func TestUnit(t *testing.T) {
	s := prepare(t)
	if out, err := s.run("systemd-analyze", "verify", "--man=no", "baton.service"); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
	s.write("/etc/baton/baton.yaml", s.config+"nonsense: 1\n")
	if out, err := s.run("systemctl", "start", "baton"); err == nil {
		t.Errorf("started with a mistake in the file: %s", out)
	}
	s.eventually("it is tried again, more often than is usual", func() bool {
		n, err := strconv.Atoi(s.property("baton", "NRestarts"))
		return err == nil && n > 6
	})
	s.write("/etc/baton/baton.yaml", s.config)
	s.eventually("it serves", func() bool { return s.property("baton", "ActiveState") == "active" })
	load := node.Run(t, s.load)

	was := s.status()
	s.does("systemctl", "reload", "baton")
	if is := s.status(); is.Current != was.Current+1 {
		t.Errorf("after a reload: %+v", is)
	}
	s.write("/etc/baton/baton.yaml", s.config+"nonsense: 1\n")
	if out, err := s.run("systemctl", "reload", "baton"); err == nil {
		t.Errorf("a reload of what is refused succeeded: %s", out)
	}
	s.write("/etc/baton/baton.yaml", s.config)
	was = s.status()
	if active := s.property("baton", "ActiveState"); active != "active" || was == nil || was.State != "serving" {
		t.Errorf("after a reload that was refused: %s, %+v", active, was)
	}

	s.does("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "baton")
	was = s.succeeded(was)

	// Another binary in the place of the one that runs, while a release is under way.
	s.install(filepath.Join(node.Build(t), "baton"))
	s.write("/etc/baton/baton.yaml", strings.Replace(s.config, "window: 200ms", "window: 1s", 1))
	released := make(chan error, 1)
	go func() { _, err := s.run("baton", "release"); released <- err }()
	next := was.Current + 1
	s.eventually("the release has flows, or has passed", func() bool {
		was = s.status()
		return was != nil && (was.Current == next || was.Release != nil && was.Release.Stage == "verify")
	})
	was.Current = next
	s.does("systemctl", "restart", "baton")
	if err := <-released; err != nil {
		t.Errorf("the release that was under way: %v", err)
	}
	was = s.succeeded(was)
	if exe := s.does("readlink", fmt.Sprintf("/proc/%d/exe", was.PID)); exe != "/usr/local/bin/baton\n" {
		t.Errorf("what was restarted runs %s", exe)
	}
	s.does("systemctl", "reload", "baton")
	if is := s.status(); is.Current != was.Current+1 {
		t.Errorf("a reload of who was restarted: %+v", is)
	}
	t.Logf("%d operations, none failed", load.End())
	s.stop()
}

// stop stops the service, and wants nothing to be left of it.
func (s *service) stop() {
	s.t.Helper()
	s.does("systemctl", "stop", "baton")
	if result := s.property("baton", "Result"); result != "success" {
		s.t.Errorf("stopped with %s", result)
	}
	for _, name := range []string{"/sys/fs/bpf/baton/run-baton-*", "/run/baton/*.sock"} {
		if left, _ := filepath.Glob(s.path(name)); len(left) > 0 {
			s.t.Errorf("left: %s", left)
		}
	}
	if left, _ := filepath.Glob(s.path("/sys/fs/cgroup/system.slice/baton.service/baton-*")); len(left) > 0 {
		s.t.Errorf("left: %s", left)
	}
	// The keeper has answered that it ends, and nobody waits for it. The unit's own group is
	// systemd's, and may stay, empty.
	s.eventually("no process is left", func() bool { return !strings.Contains(s.does("ps", "-e", "-o", "comm="), "baton") })
}
