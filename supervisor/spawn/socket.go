package spawn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoSocket says that a process does not have the socket that it was asked for.
var ErrNoSocket = errors.New("the process has it no more")

// Socket duplicates the socket with this cookie from the process (pidfd_getfd(2)), which
// takes the right to trace it: root, or the same user where Yama allows it.
func (p *Process) Socket(cookie uint64) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", p.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, err
	}
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		fd, err := p.Duplicate(number)
		if errors.Is(err, unix.EPERM) {
			return -1, err
		}
		if err != nil {
			continue // closed meanwhile
		}
		if is, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil && is == cookie {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, ErrNoSocket
}
