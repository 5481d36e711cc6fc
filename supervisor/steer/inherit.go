package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/supervisor/spawn"
)

// inherit duplicates a listener's socket of which this supervisor has a descriptor
// from the keeper: of a generation that was adopted, or else of one that has ended,
// in whose queue clients may wait. It asks nothing of the generation's process, whose
// descriptors only root can be sure to get. errNoneLeft says that there is none.
func inherit(conf config.Listener, nonblocking bool, adopted []Left, unclaimed map[string][]int) (Socket, error) {
	var fds []int
	for _, g := range adopted {
		for _, sock := range g.Sockets[conf.Name] {
			if g.Serving {
				fds = slices.Insert(fds, 0, sock.FD)
			} else {
				fds = append(fds, sock.FD)
			}
		}
	}
	for _, fd := range append(fds, unclaimed[conf.Name]...) {
		if !isAt(fd, conf) {
			continue
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return Socket{}, err
		}
		s := Socket{FD: own}
		if s.Cookie, err = unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
			err = s.mustBe(s.Cookie, nonblocking)
		}
		if err == nil {
			return s, nil
		}
		s.close()
	}
	return Socket{}, errNoneLeft
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
func adopt(conf config.Listener, nonblocking bool, left []Left) (Socket, error) {
	if len(left) == 0 {
		return Socket{}, errNoneLeft
	}
	holders, err := ports.Holders(conf.AddrPort(), conf.DualStack)
	if err != nil {
		return Socket{}, err
	}
	for _, h := range holders {
		if h.Address != conf.AddrPort() || h.DualStack != conf.DualStack {
			continue
		}
		for _, p := range h.Processes {
			for _, g := range left {
				if g.Process.PID == p.PID {
					return takeFrom(g, h, nonblocking)
				}
			}
		}
	}
	return Socket{}, errNoneLeft
}

var errNoneLeft = errors.New("no generation is left that listens there")

// takeFrom duplicates a socket of a generation's process.
func takeFrom(g Left, h ports.Holder, nonblocking bool) (Socket, error) {
	fd, err := g.Process.Socket(h.Cookie)
	if errors.Is(err, spawn.ErrNoSocket) {
		return Socket{}, errNoneLeft
	}
	if err != nil {
		return Socket{}, fmt.Errorf("take the socket of generation %d: %w", g.Generation, err)
	}
	s := Socket{fd, h.Cookie}
	if err := s.mustBe(h.Cookie, nonblocking); err != nil {
		s.close()
		return Socket{}, err
	}
	return s, nil
}

// mustBe makes sure that a descriptor is the socket meant, and that its blocking mode is as wanted.
func (s Socket) mustBe(cookie uint64, nonblocking bool) error {
	is, err := unix.GetsockoptUint64(s.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFL, 0)
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
