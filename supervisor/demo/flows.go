package demo

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Death is what a process owned at the moment it was killed.
type Death struct {
	PID int
	// At lies between the instant it was stopped and the one it was killed.
	At    time.Time
	flows map[Flow]struct{}
}

// Kill stops a process, reads which connections to the servers it has accepted,
// and kills it. While it is stopped it accepts nothing and finishes nothing, so
// the list is exact. The process must be a child of parent: a wrong number must
// not end a stranger.
func Kill(pid, parent int, servers ...netip.AddrPort) (*Death, error) {
	// The descriptor pins the process: its number cannot become another one's.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("kill %d: %w", pid, err)
	}
	defer unix.Close(fd)
	fields, err := stat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, fmt.Errorf("kill %d: %w", pid, err)
	}
	if got := fields[1]; got != strconv.Itoa(parent) {
		return nil, fmt.Errorf("kill %d: it is a child of %s, not of %d", pid, got, parent)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0); err != nil {
		return nil, fmt.Errorf("stop %d: %w", pid, err)
	}
	d := &Death{PID: pid}
	err = waitStopped(pid)
	if err == nil {
		d.At = time.Now()
		d.flows, err = accepted(pid, servers)
	}
	// Whatever went wrong, a stopped process must not stay behind.
	if killErr := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err == nil {
		err = killErr
	}
	if err != nil {
		return nil, fmt.Errorf("kill %d: %w", pid, err)
	}
	return d, nil
}

// Flows is how many connections the process owned.
func (d *Death) Flows() int { return len(d.flows) }

// Explains reports whether the operation failed because its connection was
// owned by the process that died.
func (d *Death) Explains(o Op) bool {
	if d == nil || !o.Failed() {
		return false
	}
	_, owned := d.flows[o.Flow]
	return owned && o.Dialled.Before(d.At) && o.End.After(d.At)
}

// waitStopped returns when every thread has stopped: the signal is only sent to
// one of them, and another may be about to accept.
func waitStopped(pid int) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
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

// accepted lists the connections to the servers of which the process has a
// descriptor. Those that still wait in an accept queue have none, and outlive it.
func accepted(pid int, servers []netip.AddrPort) (map[Flow]struct{}, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	owned := make(map[string]bool)
	for _, fd := range fds {
		// It is stopped, so the link stays; one that cannot be read is no socket of ours.
		link, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			owned[strings.TrimSuffix(inode, "]")] = true
		}
	}
	flows := make(map[Flow]struct{})
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without this family
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || !owned[fields[9]] {
				continue
			}
			local, err := parseAddress(fields[1])
			if err != nil {
				return nil, err
			}
			for _, s := range servers {
				if s != local {
					continue
				}
				client, err := parseAddress(fields[2])
				if err != nil {
					return nil, err
				}
				if client.Port() != 0 { // 0: the listening socket
					flows[Flow{Client: client, Server: local}] = struct{}{}
				}
			}
		}
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	return flows, nil
}

// parseAddress reads an address of /proc/net/tcp: 32-bit words as the machine
// keeps them, then the port.
func parseAddress(s string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address of /proc/net/tcp", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}
