package faults

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/tests/node"
)

// A supervisor refuses, in words, to adopt what one of another version has: a state
// file, a keeper or tables that it would have to guess at. One that runs is not even
// asked to leave, and one that was killed can be started again.
func TestAnotherVersionIsRefused(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{})
	run := filepath.Join(n.Dir, "run")
	// Nothing is written any more when the first release has ended.
	node.Eventually(t, "the start is over", func() bool { return status(t, n).Release == nil })
	was := status(t, n)
	start := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), node.Enough)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(node.Build(t), "baton"), append([]string{"run", "--config", filepath.Join(n.Dir, "first.yaml")}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("it has begun: %v\n%s", err, out)
		}
		return string(out)
	}
	for _, c := range []struct {
		what string
		make func(t *testing.T) (undo func())
		says string
	}{
		{"state", func(t *testing.T) func() {
			file := filepath.Join(run, "state.json")
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			other := strings.Replace(string(text), `"version":2`, `"version":99`, 1)
			if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { os.WriteFile(file, text, 0o600) }
		}, "has layout 99, this baton reads layouts 2 and 3"},
		{"keeper", func(t *testing.T) func() {
			path := keeper.Socket(run)
			if err := os.Rename(path, path+".kept"); err != nil {
				t.Fatal(err)
			}
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(make([]byte, 4096))
					c.Write([]byte(`{"version":99,"error":"a message of protocol 1, this is 99"}`))
					c.Close()
				}
			}()
			return func() {
				l.Close() // and with it its path
				os.Rename(path+".kept", path)
			}
		}, "a message of protocol 99, this is 1"},
		{"tables", func(t *testing.T) func() {
			pins := node.Pins(t, run)
			if err := os.Rename(filepath.Join(pins, "v2"), filepath.Join(pins, "v99")); err != nil {
				t.Fatal(err)
			}
			return func() { os.Rename(filepath.Join(pins, "v99"), filepath.Join(pins, "v2")) }
		}, "they are v99, this version has v2"},
	} {
		t.Run(c.what, func(t *testing.T) {
			undo := c.make(t)
			defer undo()
			if said := start("--replace"); !strings.Contains(said, c.says) || !strings.Contains(said, "the supervisor that runs stays") {
				t.Errorf("--replace says: %s", said)
			}
			if st := status(t, n); st.PID != was.PID || st.State != "serving" {
				t.Errorf("%+v", st)
			}
			if t.Failed() {
				return
			}
			n.Kill()
			if said := start(); !strings.Contains(said, c.says) {
				t.Errorf("it says: %s", said)
			}
			undo()
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			st := status(t, n)
			if st.Current != was.Current || len(st.Generations) != 1 || st.Generations[0].PID != was.Generations[0].PID {
				t.Errorf("was %+v, is %+v", was, st)
			}
			was = st
		})
	}
}
