package demo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWhatKilledDemosLeave makes directories as demos leave them: of one that runs, of
// one that has failed and is there to be read, and of some that were killed.
func TestWhatKilledDemosLeave(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	pinned := t.TempDir()
	pins := func(runtimeDir string) string {
		return filepath.Join(pinned, filepath.Base(filepath.Dir(runtimeDir)))
	}
	make := func(t *testing.T) (dir string, lock *os.File) {
		t.Helper()
		dir, lock, err := makeDir()
		if err == nil {
			err = errors.Join(os.Mkdir(filepath.Join(dir, "run"), 0o700), os.Mkdir(pins(filepath.Join(dir, "run")), 0o700))
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lock.Close() })
		return dir, lock
	}
	write := func(t *testing.T, path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(path string) bool {
		_, err := os.Stat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	self, err := stat("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		left  func(t *testing.T, dir string, lock *os.File)
		stays bool
		error string
	}{
		{"it runs", func(*testing.T, string, *os.File) {}, true, ""},
		{"it has failed", func(t *testing.T, dir string, lock *os.File) {
			os.Remove(filepath.Join(dir, lockName))
			lock.Close()
		}, true, ""},
		{"killed before there was a supervisor", func(_ *testing.T, _ string, lock *os.File) { lock.Close() }, false, ""},
		{"its supervisor drains", func(t *testing.T, dir string, lock *os.File) {
			f, err := os.Create(filepath.Join(dir, "run", "lock"))
			if err == nil {
				err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			lock.Close()
		}, true, ""},
		{"its supervisor has ended", func(t *testing.T, dir string, lock *os.File) {
			write(t, filepath.Join(dir, "run", "lock"), "")
			write(t, filepath.Join(dir, "run", "state.json"), fmt.Sprintf(`{"generations": [{"pid": %d, "start_time": 1}]}`, os.Getpid()))
			lock.Close()
		}, false, ""},
		{"killed with its supervisor", func(t *testing.T, dir string, lock *os.File) {
			write(t, filepath.Join(dir, "run", "lock"), "")
			write(t, filepath.Join(dir, "run", "state.json"), fmt.Sprintf(`{"generations": [{"pid": %d, "start_time": %s}]}`, os.Getpid(), self[19]))
			lock.Close()
		}, true, "of a demo that was killed 1 generations run still"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, lock := make(t)
			tt.left(t, dir, lock)
			err := removeLeft(pins)
			if tt.error == "" && err != nil || tt.error != "" && (err == nil || !strings.Contains(err.Error(), tt.error)) {
				t.Errorf("%v, want %q", err, tt.error)
			}
			pin := pins(filepath.Join(dir, "run"))
			if exists(dir) != tt.stays {
				t.Errorf("the directory is there: %t", exists(dir))
			}
			if !exists(pin) && tt.stays {
				t.Error("its pins were removed")
			}
			if exists(pin) && strings.Contains(tt.name, "has ended") {
				t.Error("its pins are left")
			}
			os.RemoveAll(dir)
		})
	}
}
