package state

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A supervisor that is stopped is not asked to leave: it would when it goes on, and
// nobody would take its place.
func TestStoppedIsNotAsked(t *testing.T) {
	dir := t.TempDir()
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	defer func() {
		cmd.Process.Kill()
		<-ended
	}()
	if err := os.WriteFile(filepath.Join(dir, lockName), fmt.Append(nil, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGSTOP)
	for deadline := time.Now().Add(time.Minute); !stopped(cmd.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not stop")
		}
	}
	if err := AskToLeave(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "is stopped") {
		t.Error(err)
	}
	cmd.Process.Signal(syscall.SIGCONT)
	select {
	case <-ended:
		t.Error("it was asked to leave")
	case <-time.After(100 * time.Millisecond): // it would have ended at once
	}
}

// Who finds a directory locked is told by whom, also where an earlier owner had a
// longer number.
func TestLockNamesItsOwner(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, lockName), []byte("99999999999999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := Lock(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another supervisor (pid %d)", os.Getpid())) {
		t.Error(err)
	}
	// Nobody is signalled for a number that is no supervisor's: 0 and less are groups.
	for _, text := range []string{"", "x", "0", "1", "-1"} {
		if err := os.WriteFile(filepath.Join(dir, lockName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := AskToLeave(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "names no supervisor") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A directory that was removed, or made anew, is not held any more.
func TestHeld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	lock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if !Held(lock, dir) {
		t.Error("not held")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if Held(lock, dir) {
		t.Error("held, and it is gone")
	}
	other, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if Held(lock, dir) || !Held(other, dir) {
		t.Error("held by the one before")
	}
}
