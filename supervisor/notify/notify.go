// Package notify receives what generations say of themselves: the datagrams of
// sd_notify(3), with the kernel's word on who sent them.
package notify

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is one datagram and its sender.
type Message struct {
	// PID is the sender's, as the kernel saw it when the datagram was sent.
	PID int
	// CgroupID is the inode of the sender's cgroup2 directory, known even when
	// the sender has gone meanwhile; 0 where the kernel cannot tell.
	CgroupID uint64
	// Fields are the assignments, such as READY=1.
	Fields map[string]string
}

// Socket is where generations send to. Anybody may: the receiver decides whom
// it believes.
type Socket struct {
	path string

	mu       sync.Mutex
	conn     *net.UnixConn            // Restore puts another in its place
	barriers map[string]chan struct{} // by name; closed when Receive meets it
}

// Linux constants that x/sys lacks: include/uapi/asm-generic/socket.h and
// include/uapi/linux/pidfd.h (6.5, 6.13 and, for what has been reaped, 6.15).
const (
	soPassPidFD  = 76
	scmPidFD     = 4
	infoCgroupID = 1 << 2
	infoExit     = 1 << 3
	// _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes.
	pidfdGetInfo = 3<<30 | 64<<16 | 0xFF<<8 | 11
)

type pidfdInfo struct {
	mask, cgroupID uint64
	_              [12]uint32
}

// Listen makes the socket at path, in place of one left behind. Its directory
// must let any user pass.
func Listen(path string) (*Socket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	conn, err := listenAt(path)
	if err != nil {
		return nil, err
	}
	return &Socket{conn: conn, path: path, barriers: map[string]chan struct{}{}}, nil
}

func listenAt(path string) (*net.UnixConn, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := configure(conn, path); err != nil {
		conn.Close()
		os.Remove(path)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return conn, nil
}

// Restore makes the socket again where somebody has removed its file, and reports
// whether it had to.
func (s *Socket) Restore() (bool, error) {
	if _, err := os.Lstat(s.path); !errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	conn, err := listenAt(s.path)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	old := s.conn
	s.conn = conn
	s.mu.Unlock()
	return true, old.Close() // Receive goes on with the other
}

func (s *Socket) current() *net.UnixConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

func configure(conn *net.UnixConn, path string) error {
	// Every generation has a user of its own; the socket is for all of them.
	if err := os.Chmod(path, 0o666); err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		// Before 6.5 there is no such option; the pid alone has to do then.
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, soPassPidFD, 1)
	})
	return errors.Join(err, optErr)
}

// Path is the value of NOTIFY_SOCKET.
func (s *Socket) Path() string { return s.path }

// Receive blocks for the next datagram that carries credentials. It fails when
// the socket is closed.
func (s *Socket) Receive() (Message, error) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		conn := s.current()
		n, on, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil && conn != s.current() {
			continue // restored
		}
		if err != nil {
			return Message{}, err
		}
		m, ok := parse(buf[:n], oob[:on])
		if !ok || m.PID == os.Getpid() && s.passed(m.Fields[barrierField]) {
			continue
		}
		return m, nil
	}
}

// barrierField names the datagram that [Socket.Sync] sends to itself.
const barrierField = "X_BATON_BARRIER"

// Sync returns when Receive has returned, and its caller come back for more,
// for everything that was sent before the call: the last words of a process
// that has ended are still in the queue then. It ends with ctx.
func (s *Socket) Sync(ctx context.Context) error {
	name := rand.Text()
	passed := make(chan struct{})
	s.mu.Lock()
	s.barriers[name] = passed
	s.mu.Unlock()
	defer s.passed(name)

	c, err := net.Dial("unixgram", s.path)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte(barrierField + "=" + name)); err != nil {
		return err
	}
	select {
	case <-passed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// passed opens the barrier of that name, if there is one.
func (s *Socket) passed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.barriers[name]
	if ok {
		delete(s.barriers, name)
		close(c)
	}
	return ok
}

func parse(text, oob []byte) (m Message, ok bool) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return m, false
	}
	for _, c := range controls {
		switch {
		case c.Header.Level != unix.SOL_SOCKET:
		case c.Header.Type == unix.SCM_CREDENTIALS:
			if cred, err := unix.ParseUnixCredentials(&c); err == nil {
				m.PID, ok = int(cred.Pid), true
			}
		case c.Header.Type == scmPidFD && len(c.Data) >= 4:
			fd := int(*(*int32)(unsafe.Pointer(&c.Data[0])))
			m.CgroupID = cgroupOf(fd)
			unix.Close(fd)
		case c.Header.Type == unix.SCM_RIGHTS:
			// Nobody asked for descriptors; kept open they would be a leak that
			// any user can cause.
			fds, _ := unix.ParseUnixRights(&c)
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}
	m.Fields = map[string]string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		if key, value, found := strings.Cut(line, "="); found {
			m.Fields[key] = value
		}
	}
	return m, ok
}

func cgroupOf(pidfd int) uint64 {
	// Asking for the exit too is what makes the kernel answer for a process that
	// its parent has waited for (pidfd_info, fs/pidfs.c).
	info := pidfdInfo{mask: infoCgroupID | infoExit}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info))); errno != 0 || info.mask&infoCgroupID == 0 {
		return 0
	}
	return info.cgroupID
}

// Close ends Receive and removes the socket.
func (s *Socket) Close() error {
	err := s.current().Close()
	if rerr := os.Remove(s.path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
