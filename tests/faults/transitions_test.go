package faults

import (
	"context"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// kills is how often a supervisor is killed; BATON_KILLS says otherwise.
func kills(t *testing.T, usual int) int {
	t.Helper()
	text := os.Getenv("BATON_KILLS")
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BATON_KILLS=%q is not a number", text)
	}
	return n
}

// TestSupervisorKilledInReleases kills the supervisor at moments spread over a
// release: before the candidate runs, while it starts and is probed, about the
// shift, while it is watched, while the old one drains. The next supervisor adopts
// what it finds, undoes or keeps what was begun, and releases again. No client sees
// any of it.
func TestSupervisorKilledInReleases(t *testing.T) {
	for _, mode := range []string{"bpf", "takeover"} {
		t.Run(mode, func(t *testing.T) {
			settings := demo.Settings{Steering: mode}
			n := node.Start(t, demo.Place{}, settings)
			load := node.Under(t, n, func(l *demo.Load) { l.Slow = time.Second })
			file, err := n.WriteConfig("candidate", settings)
			if err != nil {
				t.Fatal(err)
			}

			// A release of this node, and the begin of the drain. The transitions have a
			// test of their own.
			const spread = 500 * time.Millisecond
			rounds := kills(t, 2)
			var took []time.Duration
			for i := range rounds {
				released := make(chan struct{})
				go func() {
					defer close(released)
					n.Release(context.WithoutCancel(t.Context()), file) // its supervisor is killed
				}()
				time.Sleep(spread * time.Duration(i) / time.Duration(rounds))
				n.Kill()
				<-released
				begin := time.Now()
				if err := n.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(begin))
				if st := status(t, n); st.Current == 0 {
					t.Fatalf("after kill %d nobody serves: %+v", i, st)
				}
			}
			res, err := n.Release(t.Context(), file)
			if err != nil || res.ExitCode != 0 {
				t.Errorf("a release afterwards: %+v, %v", res, err)
			}
			node.Eventually(t, "one generation is left", func() bool { return len(status(t, n).Generations) == 1 })
			ok := load.End()
			slices.Sort(took)
			t.Logf("%d kills, %d operations, none failed; in charge after %v in the median, %v at most", rounds, ok, took[len(took)/2], took[len(took)-1])
		})
	}
}

// keeperOf finds the process that keeps descriptors for a node.
func keeperOf(t *testing.T, n *demo.Node) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && string(line) == "baton-keep\x00"+n.Dir+"/run/keeper.sock\x00" {
			pid, _ := strconv.Atoi(e.Name())
			return pid
		}
	}
	return 0
}

// descriptors is how many a process has open.
func descriptors(pid int) int {
	entries, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	return len(entries)
}

// A keeper that is killed is replaced, and so is one that is stuck; the next
// supervisor finds everything with the new one. If both are killed the next
// supervisor takes the sockets from the generations themselves, and where its tables
// are gone too fills them anew, while new flows wait.
func TestKeeperKilled(t *testing.T) {
	for _, test := range []struct {
		name string
		by   syscall.Signal
		both bool
		pins bool // are left
	}{
		{"keeper alone", syscall.SIGKILL, false, true},
		{"keeper stopped", syscall.SIGSTOP, false, true},
		{"keeper and supervisor", syscall.SIGKILL, true, true},
		{"keeper, supervisor and tables", syscall.SIGKILL, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			both := test.both
			n := node.Start(t, demo.Place{}, demo.Settings{})
			load := node.Under(t, n, func(l *demo.Load) {
				l.Slow = time.Second
				l.ForgivesSessions = both // the keys of tickets are with the keeper
			})
			was, first := status(t, n), keeperOf(t, n)
			if first == 0 {
				t.Fatal("there is no keeper")
			}
			had := descriptors(first)
			if both {
				// Stopped, it replaces no keeper.
				syscall.Kill(n.PID(), syscall.SIGSTOP)
			}
			if err := syscall.Kill(first, test.by); err != nil {
				t.Fatal(err)
			}
			if !both {
				node.Eventually(t, "another keeper with as much", func() bool {
					now := keeperOf(t, n)
					return now != 0 && now != first && descriptors(now) >= had
				})
			}
			n.Kill()
			if !test.pins {
				node.Unpin(t, n.Dir+"/run")
			}
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if st := status(t, n); st.Current != was.Current || st.Generations[0].PID != was.Generations[0].PID {
				t.Errorf("was %+v, is %+v", was, st)
			}
			file, err := n.WriteConfig("candidate", demo.Settings{})
			if err != nil {
				t.Fatal(err)
			}
			// The account of flows has a gap where it was not pinned: no release is judged by it.
			if res, err := n.Release(t.Context(), file); err != nil || res.Outcome != "passed" && (test.pins || res.Outcome != "inconclusive") {
				t.Errorf("a release afterwards: %+v, %v", res, err)
			}
			load.End()
		})
	}
}
