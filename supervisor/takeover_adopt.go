package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// inherit duplicates a listener's socket of which this supervisor has a descriptor
// from the keeper: of a generation that was adopted, or else of one that has ended,
// in whose queue clients may wait. It asks nothing of the generation's process, whose
// descriptors only root can be sure to get. errNoneLeft says that there is none.
func inherit(conf config.Listener, nonblocking bool, adopted []*generation, unclaimed map[string]int) (socket, error) {
	var fds []int
	for _, g := range adopted {
		for _, sock := range g.sockets[conf.Name] {
			if g.state == Serving {
				fds = slices.Insert(fds, 0, sock.fd)
			} else {
				fds = append(fds, sock.fd)
			}
		}
	}
	for name, fd := range unclaimed {
		if strings.HasSuffix(name, "/socket/"+conf.Name+"/0") {
			fds = append(fds, fd)
		}
	}
	for _, fd := range fds {
		if !isAt(fd, conf) {
			continue
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return socket{}, err
		}
		s := socket{fd: own}
		if s.cookie, err = unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
			err = s.mustBe(s.cookie, nonblocking)
		}
		if err == nil {
			return s, nil
		}
		s.close()
	}
	return socket{}, errNoneLeft
}

// isAt reports whether a socket is bound to the listener's address.
func isAt(fd int, conf config.Listener) bool {
	at, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	want := conf.AddrPort()
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		return want.Addr().Unmap() == netip.AddrFrom4(at.Addr) && want.Port() == uint16(at.Port)
	case *unix.SockaddrInet6:
		only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		return err == nil && (only == 0) == conf.DualStack &&
			want.Addr().WithZone("") == netip.AddrFrom16(at.Addr) && want.Port() == uint16(at.Port)
	}
	return false
}

// adopt takes a listener's socket from a generation that an earlier supervisor
// has left, so that the queue it serves is the one that the next generation
// serves, too. errNoneLeft says that no such generation listens there.
func adopt(conf config.Listener, nonblocking bool, left []*generation) (socket, error) {
	if len(left) == 0 {
		return socket{}, errNoneLeft
	}
	holders, err := ports.Holders(conf.AddrPort(), conf.DualStack)
	if err != nil {
		return socket{}, err
	}
	for _, h := range holders {
		if h.Address != conf.AddrPort() || h.DualStack != conf.DualStack {
			continue
		}
		for _, p := range h.Processes {
			for _, g := range left {
				if g.process.PID == p.PID {
					return takeFrom(g, h, nonblocking)
				}
			}
		}
	}
	return socket{}, errNoneLeft
}

var errNoneLeft = errors.New("no generation is left that listens there")

// takeFrom duplicates a socket of a generation's process (pidfd_getfd(2)), which
// takes the right to trace it: root, or the same user where Yama allows it.
func takeFrom(g *generation, h ports.Holder, nonblocking bool) (socket, error) {
	dir := fmt.Sprintf("/proc/%d/fd", g.process.PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return socket{}, err
	}
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || link != fmt.Sprintf("socket:[%d]", h.Inode) {
			continue
		}
		var number int
		if _, err := fmt.Sscan(e.Name(), &number); err != nil {
			return socket{}, err
		}
		fd, err := g.process.Duplicate(number)
		if err != nil {
			return socket{}, fmt.Errorf("take the socket of generation %d: %w", g.id, err)
		}
		s := socket{fd, h.Cookie}
		if err := s.mustBe(h.Cookie, nonblocking); err != nil {
			s.close()
			return socket{}, err
		}
		return s, nil
	}
	return socket{}, errNoneLeft
}

// mustBe makes sure that a descriptor, found by a number that may have been used
// again meanwhile, is the socket meant, and that its blocking mode is as wanted.
func (s socket) mustBe(cookie uint64, nonblocking bool) error {
	is, err := unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	if is != cookie {
		return errNoneLeft
	}
	if (flags&unix.O_NONBLOCK != 0) != nonblocking {
		return errors.New("the socket that was left has another blocking mode than proxy.nonblocking says")
	}
	return nil
}
