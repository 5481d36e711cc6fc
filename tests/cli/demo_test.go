package cli

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
	supervised "github.com/baton-mesh/baton/tests/node"
)

// TestInterruptedDemo interrupts `baton demo` in the middle: it ends, says that it failed, and
// leaves neither its directory nor anything of its supervisor.
func TestInterruptedDemo(t *testing.T) {
	need.Root(t, "a supervisor loads BPF programs")
	tmp, err := os.MkdirTemp("", "baton-cli-")
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(tmp) })
		err = os.Chmod(tmp, 0o711) // for a generation's user
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(supervised.Build(t), "baton"), "demo")
	cmd.Env = append(cmd.Environ(), "TMPDIR="+tmp)
	words, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() }) // its supervisor ends with it
	late := time.AfterFunc(2*supervised.Enough, func() { cmd.Process.Kill() })
	defer late.Stop()
	lines := bufio.NewScanner(words)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "load on") {
		t.Log(lines.Text())
	}
	dirs, err := filepath.Glob(filepath.Join(tmp, "baton-demo-*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("while it should run: %v, %v", dirs, err)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // until it ends
		t.Log(lines.Text())
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("%v, want exit code 1", cmd.ProcessState)
	}
	supervised.WantNothingLeft(t, filepath.Join(dirs[0], "run"))
	if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
