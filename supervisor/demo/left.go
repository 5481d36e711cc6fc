package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// What a demo leaves when it is killed has no owner any more: its directory, and what a
// supervisor that was killed too has pinned. Who makes such a directory holds a lock in
// it for as long as it may use it, and takes the lock away where the directory is to
// stay, for somebody who reads the log.

const lockName = "demo.lock"

// makeDir makes a directory for a node.
func makeDir() (dir string, lock *os.File, err error) {
	if dir, err = os.MkdirTemp("", "baton-demo-"); err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, lockName)
	if lock, err = os.OpenFile(path+".new", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return dir, nil, err
	}
	// Under its name it is held from the first moment.
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); err == nil {
		err = os.Rename(lock.Name(), path)
	}
	return dir, lock, err
}

// unused takes the lock in a file if nobody has it.
func unused(path string) (*os.File, bool) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, false
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil, false
	}
	return f, true
}

// removeLeft removes what killed demos of this user have left, with what is pinned for
// them. Where one's generations run still, which its supervisor could not end, the
// error says so, and all stays.
func removeLeft(pins func(runtimeDir string) string) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), "baton-demo-*"))
	errs := []error{err}
	for _, dir := range dirs {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || st.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		lock, ok := unused(filepath.Join(dir, lockName))
		if !ok {
			continue
		}
		errs = append(errs, removeDir(dir, pins))
		lock.Close()
	}
	return errors.Join(errs...)
}

func removeDir(dir string, pins func(runtimeDir string) string) error {
	runtimeDir := filepath.Join(dir, "run")
	if _, err := os.Stat(filepath.Join(runtimeDir, "lock")); err == nil {
		supervisor, ok := unused(filepath.Join(runtimeDir, "lock"))
		if !ok {
			return nil // it is about to end: the next demo will see
		}
		defer supervisor.Close()
		if n := running(filepath.Join(runtimeDir, "state.json")); n > 0 {
			return fmt.Errorf("%s: of a demo that was killed %d generations run still: baton run --config %s adopts them, and SIGTERM ends it", dir, n, filepath.Join(dir, "first.yaml"))
		}
		if err := os.RemoveAll(pins(runtimeDir)); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// running counts the processes in a state file that live.
func running(file string) (n int) {
	var state struct {
		Generations []struct {
			PID       int
			StartTime uint64 `json:"start_time"`
		}
	}
	text, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(text, &state) != nil {
		return 0
	}
	for _, g := range state.Generations {
		// starttime is the twenty-second field (proc_pid_stat(5)).
		if fields, err := stat(fmt.Sprintf("/proc/%d/stat", g.PID)); err == nil && len(fields) > 19 && fields[0] != "Z" && fields[19] == fmt.Sprint(g.StartTime) {
			n++
		}
	}
	return n
}
