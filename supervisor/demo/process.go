package demo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a generation, to be treated badly.
type Process struct {
	pid int
	fd  int // pins the process: its number cannot become another one's
}

// OpenProcess takes hold of a process that must be a child of the supervisor: a
// wrong number must not end a stranger. [Process.Close] lets go of it.
func OpenProcess(pid, supervisor int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &Process{pid, fd}
	fields, err := stat(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && fields[1] != strconv.Itoa(supervisor) {
		err = fmt.Errorf("it is a child of %s, not of %d", fields[1], supervisor)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return p, nil
}

// Close lets go of the process, which lives on.
func (p *Process) Close() error { return unix.Close(p.fd) }

// Stop stops the process and returns when it does nothing any more.
func (p *Process) Stop() error {
	err := p.signal(unix.SIGSTOP)
	if err == nil {
		if err = p.waitStopped(); err != nil {
			p.signal(unix.SIGCONT)
		}
	}
	if err != nil {
		return fmt.Errorf("stop process %d: %w", p.pid, err)
	}
	return nil
}

// Continue undoes Stop.
func (p *Process) Continue() error {
	if err := p.signal(unix.SIGCONT); err != nil {
		return fmt.Errorf("continue process %d: %w", p.pid, err)
	}
	return nil
}

func (p *Process) signal(s unix.Signal) error { return unix.PidfdSendSignal(p.fd, s, nil, 0) }

// waitStopped returns when every thread has stopped: the signal is only sent to
// one of them, and another may be about to accept.
func (p *Process) waitStopped() error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
		if err != nil || len(stats) == 0 {
			return errors.Join(errors.New("it has ended"), err)
		}
		running := 0
		for _, path := range stats {
			fields, err := stat(path)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // the thread has ended
			}
			if err != nil {
				return err
			}
			if fields[0] != "T" {
				running++
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d threads did not stop", running)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// stat is /proc/PID/stat from the third field: state, parent, … (proc_pid_stat(5)).
func stat(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	// The name before it may hold anything, even parentheses.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return nil, fmt.Errorf("%s: %d fields", path, len(fields))
	}
	return fields, nil
}
