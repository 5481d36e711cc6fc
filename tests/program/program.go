// Package program runs programs that are not ours beside what is under test, and builds
// those that have to be, each in a module of its own: none of it is in Baton's.
package program

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Go runs the go command in a directory, for each list of arguments.
func Go(t testing.TB, dir string, all ...[]string) {
	t.Helper()
	for _, args := range all {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
}

// Start runs a command until the test ends, or its binary dies. What it has printed is
// shown if the test fails.
func Start(t testing.TB, cmd *exec.Cmd) *Output {
	t.Helper()
	printed := new(Output)
	cmd.Stdout, cmd.Stderr = printed, printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %.4000s", filepath.Base(cmd.Path), printed)
		}
	})
	return printed
}

// Output is what a program has printed.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}
