package faults

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// The runtime directory of a node that runs is removed, with its sockets, its lock, its
// state and its keeper's socket: all are made again. Generations start and are heard, no
// other supervisor begins there, and the next one finds everything. No client sees any of it.
func TestRuntimeDirIsRemoved(t *testing.T) {
	settings := demo.Settings{DrainTimeout: time.Minute} // on a machine that is busy operations take long
	n := node.Start(t, demo.Place{}, settings)
	load := node.Load(t, n)
	load.Slow = time.Second
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { load.Run(ctx) })
	defer clients.Wait()
	defer stop()
	node.Eventually(t, "the load to get going", func() bool { return load.Counts().OK > 100 })
	first, dir := keeperOf(t, n), n.Dir+"/run"
	had := descriptors(first)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "another keeper with as much", func() bool {
		now := keeperOf(t, n)
		return now != 0 && now != first && descriptors(now) >= had
	})
	for _, name := range []string{"admin.sock", "keeper.sock", "lock", "notify", "state.json"} {
		node.Eventually(t, name+" is made again", func() bool {
			_, err := os.Lstat(dir + "/" + name)
			return err == nil
		})
	}
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.Outcome != "passed" {
		t.Errorf("a release: %+v, %v", res, err)
	}
	out, err := exec.CommandContext(t.Context(), n.Executable(), "run", "--config", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another supervisor (pid") {
		t.Errorf("another supervisor: %v, %s", err, out)
	}
	was := status(t, n)
	n.Kill()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if is := status(t, n); is.Current != was.Current || is.Generations[len(is.Generations)-1].PID != was.Generations[len(was.Generations)-1].PID {
		t.Errorf("was %+v, is %+v", was, is)
	}
	stop()
	clients.Wait()
	for _, op := range load.Ops() {
		if op.Err != nil {
			t.Errorf("%s from %s: %v", op.Kind, op.Flow.Client, op.Err)
		}
	}
}
