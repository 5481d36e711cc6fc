// Package faults kills what Baton is made of, under load, and counts what
// clients saw of it.
package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// startNode runs a supervisor on this machine.
func startNode(t *testing.T) *demo.Node {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./supervisor/cmd/baton", "./proxy/cmd/baton-proxy")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	node, err := demo.StartNode(t.Context(), filepath.Join(dir, "baton"), demo.Place{}, demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := os.ReadFile(node.LogFile())
			t.Logf("%s", log)
		}
		node.Remove()
	})
	return node
}

func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// status asks the supervisor; the generations it lists live.
func status(t *testing.T, node *demo.Node) *demo.Status {
	t.Helper()
	st, err := node.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// A supervisor that is killed leaves its generation serving; the next one starts
// another, takes the addresses over and drains what it found. No client sees it.
func TestSupervisorKilled(t *testing.T) {
	node := startNode(t)
	load := &demo.Load{HTTP: node.HTTP.String(), TCP: node.TCP.String(), Slow: time.Second}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { load.Run(ctx) })
	defer clients.Wait()
	defer stop()
	eventually(t, 10*time.Second, "the load to get going", func() bool { return load.Counts().OK > 200 })

	for round := 2; round <= 4; round++ {
		left := status(t, node).Generations[0].PID
		node.Kill()
		time.Sleep(300 * time.Millisecond) // nobody is in charge, and traffic goes on
		if err := node.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		st := status(t, node)
		if st.Current != round {
			t.Errorf("generation %d serves after restart %d: numbers go on for ever", st.Current, round-1)
		}
		eventually(t, 15*time.Second, "what was left is drained", func() bool { return len(status(t, node).Generations) == 1 })
		// A zombie, where PID 1 reaps nobody, runs nothing.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", left)); err == nil {
			t.Errorf("process %d, left by the killed supervisor, still runs %s", left, exe)
		}
	}
	file, err := node.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := node.Release(t.Context(), file)
	if err != nil || res.Outcome != "passed" {
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
