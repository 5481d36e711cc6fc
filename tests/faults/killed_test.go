// Package faults kills what Baton is made of, under load, and counts what
// clients saw of it.
package faults

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
)

const config = `
runtime_dir: %[1]s/run
node: {name: test, server_id: 7}
admin: {address: ""}
listeners:
  - {name: web, address: "%[2]s", protocol: http}
  - {name: raw, address: "%[3]s", protocol: tcp}
routes:
  - {name: all, listeners: [web], upstreams: [{name: origin}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
upstreams:
  - {name: origin, endpoints: ["%[4]s"]}
  - {name: echo, endpoints: ["%[5]s"]}
proxy: {command: [baton-proxy], user: nobody, nonblocking: true, baton: true}
release: {drain_timeout: 10s, verify: {window: 100ms}}
shutdown: {lead: 0s}
`

// site is a place where one supervisor after the other runs.
type site struct {
	t        *testing.T
	dir      string
	web, raw string
	admin    *admin.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	build := exec.Command("go", "build", "-o", dir, "./supervisor/cmd/baton", "./proxy/cmd/baton-proxy")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { origin.Close() })
	s := &site{t: t, dir: dir, web: free(t), raw: free(t), admin: admin.Dial(filepath.Join(dir, "run", "admin.sock"))}
	text := fmt.Appendf(nil, config, dir, s.web, s.raw, origin.HTTPAddress(), origin.EchoAddress())
	if err := os.WriteFile(filepath.Join(dir, "baton.yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a supervisor and returns when it serves.
func (s *site) start() *exec.Cmd {
	s.t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.dir, "baton"), "run", "--config", filepath.Join(s.dir, "baton.yaml"))
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if s.t.Failed() {
			data, _ := os.ReadFile(log.Name())
			s.t.Logf("%s", data)
		}
	})
	s.eventually(10*time.Second, "the supervisor serves", func() bool {
		st, err := s.admin.Status(s.t.Context())
		return err == nil && st.PID == cmd.Process.Pid && st.State == "serving" && st.Release == nil
	})
	return cmd
}

func (s *site) eventually(within time.Duration, what string, cond func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *site) status() supervisor.Status {
	s.t.Helper()
	st, err := s.admin.Status(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

// A supervisor that is killed leaves its generation serving; the next one starts
// another, takes the addresses over and drains what it found. No client sees it.
func TestSupervisorKilled(t *testing.T) {
	s := newSite(t)
	cmd := s.start()
	load := &demo.Load{HTTP: s.web, TCP: s.raw, Slow: time.Second}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { load.Run(ctx) })
	defer clients.Wait()
	defer stop()
	s.eventually(10*time.Second, "the load to get going", func() bool { return load.Counts().OK > 200 })

	for round := uint64(2); round <= 4; round++ {
		left := s.status().Generations[0].PID
		cmd.Process.Kill()
		cmd.Wait()
		time.Sleep(300 * time.Millisecond) // nobody is in charge, and traffic goes on
		cmd = s.start()
		st := s.status()
		if st.Current != round {
			t.Errorf("generation %d serves after restart %d: numbers go on for ever", st.Current, round-1)
		}
		s.eventually(15*time.Second, "what was left is drained", func() bool { return len(s.status().Generations) == 1 })
		// A zombie, where PID 1 reaps nobody, runs nothing.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", left)); err == nil {
			t.Errorf("process %d, left by the killed supervisor, still runs %s", left, exe)
		}
	}
	res, err := s.admin.Release(t.Context(), supervisor.Request{})
	if err != nil || res.Outcome != supervisor.Passed {
		t.Errorf("a release afterwards: %+v, %v", res, err)
	}
	stop()
	clients.Wait()
	ok := 0
	for _, op := range load.Ops() {
		if op.Err != nil {
			t.Errorf("%s from %s: %v", op.Kind, op.Flow.Client, op.Err)
		} else {
			ok++
		}
	}
	t.Logf("%d operations, none failed, over three supervisors killed", ok)
}
