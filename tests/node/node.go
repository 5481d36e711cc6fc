// Package node runs supervisors for tests: it builds what is under test, starts
// it as an operator would, and leaves nothing behind.
//
//	func TestMain(m *testing.M) { os.Exit(node.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		n := node.Start(t, demo.Place{}, demo.Settings{})
//		…
//	}
//
// A supervisor gets SIGTERM when the test binary dies, however it dies, and
// takes its generations with it.
package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/testnet"
)

// shared is the directory that the tests of a package build into, once. Empty:
// its TestMain does not call Main, and each test builds for itself.
var shared string

// Main runs a package's tests and returns its exit code. What they build is
// built once, and removed at the end.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "baton-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // for a generation's user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = dir
	return m.Run()
}

var buildOnce = sync.OnceValue(func() error { return build(shared) })

func build(dir string) error {
	return goBuild("-o", dir, "./supervisor/cmd/baton", "./proxy/cmd/baton-proxy")
}

func goBuild(args ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

// moduleRoot is the folder above with go.mod: a test runs in its package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no go.mod above the working directory")
}

// Build compiles the supervisor and the proxy and returns the directory with
// both, which every user may enter. The test must not change it.
func Build(t testing.TB) (dir string) {
	t.Helper()
	var err error
	if dir = shared; dir != "" {
		err = buildOnce()
	} else {
		dir = t.TempDir()
		err = build(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// On is a host, as the place of a node.
func On(host *testnet.Host) demo.Place {
	return demo.Place{Addr: host.Addr4, Command: host.Command, Listen: host.Listen}
}

// Start runs a node, which ends with the test; the test fails if it does not end
// as it should. If the test has failed, the end of its log is shown.
func Start(t testing.TB, at demo.Place, s demo.Settings) *demo.Node {
	t.Helper()
	return start(t, filepath.Join(Build(t), "baton"), at, s)
}

// StartMortal is Start with a supervisor that dies at the transition whose name is
// written to kill-at in its runtime directory (supervisor/cmd/baton/killat.go).
func StartMortal(t testing.TB, s demo.Settings) *demo.Node {
	t.Helper()
	mortal := filepath.Join(Build(t), "baton-mortal")
	if err := goBuild("-o", mortal, "-tags", "killat", "./supervisor/cmd/baton"); err != nil {
		t.Fatal(err)
	}
	return start(t, mortal, demo.Place{}, s)
}

func start(t testing.TB, executable string, at demo.Place, s demo.Settings) *demo.Node {
	t.Helper()
	need.Root(t, "a supervisor loads BPF programs")
	n, err := demo.StartNode(t.Context(), executable, at, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
		WantNothingLeft(t, filepath.Join(n.Dir, "run"))
		if t.Failed() {
			t.Logf("the end of the node's log, %s:\n%s", n.LogFile(), tail(n.LogFile(), 16<<10))
			return
		}
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Load is the usual load on a node.
func Load(t testing.TB, n *demo.Node) *demo.Load {
	t.Helper()
	load, err := n.Load()
	if err != nil {
		t.Fatal(err)
	}
	return load
}

func tail(file string, size int) []byte {
	b, err := os.ReadFile(file)
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-size):]
}

// Enough is how long anything may take on a machine that has much else to do.
const Enough = time.Minute

// Eventually waits for what somebody else brings about.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Enough); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", Enough, what)
		}
	}
}
