package state

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the file in a runtime directory that its supervisor holds locked.
const lockName = "lock"

// Lock makes sure that one supervisor works in a directory. The lock
// ends with the process.
func Lock(dir string) (*os.File, error) {
	// Generations of any user pass through it to the notify socket.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make runtime_dir: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("runtime_dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("runtime_dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(f.Name())
		f.Close()
		return nil, fmt.Errorf("another supervisor (pid %s) works in %s", strings.TrimSpace(string(pid)), dir)
	}
	f.Truncate(0)
	fmt.Fprintln(f, os.Getpid())
	return f, nil
}

// Held reports whether a lock is still the one that others find in a directory: not where
// the directory, or the file, was removed.
func Held(lock *os.File, dir string) bool {
	ours, err := lock.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Lstat(filepath.Join(dir, lockName))
	return err == nil && os.SameFile(ours, theirs)
}

// AskToLeave makes the supervisor that works in a runtime directory give way
// (SIGUSR2), and returns when it has, or when ctx ends. It asks again while a
// release is under way there. Where nobody works it returns at once.
func AskToLeave(ctx context.Context, runtimeDir string) error {
	path := filepath.Join(runtimeDir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return nil // free, and free again with f
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 1 {
			return fmt.Errorf("%s names no supervisor", path)
		}
		if stopped(pid) { // the signal would wait, and have it leave when nobody expects that any more
			return fmt.Errorf("supervisor %d is stopped: let it go on (kill -CONT %d), or end it (kill -KILL %d) and start without --replace; what runs is adopted either way", pid, pid, pid)
		}
		if err := unix.Kill(pid, unix.SIGUSR2); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("ask supervisor %d to give way: %w", pid, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("supervisor %d has not given way in time (%w): a release is under way there, or it is stuck; it may still leave. kill -KILL %d ends it, and what runs is adopted either way", pid, context.Cause(ctx), pid)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stopped reports whether a process is stopped by a signal or a debugger (proc_pid_stat(5)).
func stopped(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "T") || strings.HasPrefix(rest, "t")
}
