package scratch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// What a process has left that is gone is taken away, with what its supervisor had
// pinned; what is another's is not.
func TestSweep(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead, lives := gone.Process.Pid, os.Getpid()
	tmp, bpffs := t.TempDir(), t.TempDir()
	flat := func(name string) string { // of the directory that a supervisor has in tmp
		return filepath.ToSlash(fmt.Sprintf("%s-%s-run-0badcafe", slashless(tmp), name))
	}
	var stays, goes []string
	for _, pid := range []int{dead, lives} {
		dir := fmt.Sprintf("baton-t%d-1", pid)
		all := []string{
			filepath.Join(tmp, dir), filepath.Join(bpffs, fmt.Sprintf("baton-test-%d-1", pid)), filepath.Join(bpffs, "baton", flat(dir)),
		}
		if pid == dead {
			goes = append(goes, all...)
		} else {
			stays = append(stays, all...)
		}
	}
	for _, name := range []string{"baton-t-1", "baton-tide-1", "baton-test-3819951195", "baton-t3819951195", fmt.Sprintf("baton-test-%d-1", dead), fmt.Sprintf("baton-t%d-x", dead), fmt.Sprintf("baton-t%d", dead)} {
		stays = append(stays, filepath.Join(tmp, name))
	}
	stays = append(stays, filepath.Join(bpffs, "baton", "run-baton-0badcafe"), filepath.Join(bpffs, "baton-test-3819951195"))
	for _, path := range slices.Concat(stays, goes) {
		if err := os.MkdirAll(filepath.Join(path, "inside"), 0o755); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-2 * settled)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	young := filepath.Join(tmp, fmt.Sprintf("baton-t%d-2", dead)) // of another PID namespace, perhaps
	if err := os.Mkdir(young, 0o755); err != nil {
		t.Fatal(err)
	}
	stays = append(stays, young)
	sweep(tmp, bpffs)
	for _, path := range stays {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for _, path := range goes {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
