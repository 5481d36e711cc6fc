package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

// Socket is a socket of a listener: a plain descriptor, never wrapped in a
// net.Listener or an os.File, which would change its blocking mode for the
// generation that shares it.
type Socket struct {
	FD     int
	Cookie uint64 // SO_COOKIE: the kernel's name for it, never used twice (socket(7))
}

// Sockets are those of one generation, by listener, one a worker.
type Sockets map[string][]Socket

// Close closes all of them.
func (all Sockets) Close() {
	for _, workers := range all {
		for _, s := range workers {
			s.close()
		}
	}
}

// bind makes a socket bound to the listener's address that may share it with
// other sockets of this user, not yet listening.
func bind(l config.Listener, nonblocking bool) (Socket, error) {
	// IPPROTO_TCP, not MPTCP: no reuseport program can be attached to that.
	return bindAs(l, nonblocking, unix.SOCK_STREAM, unix.IPPROTO_TCP)
}

func bindAs(l config.Listener, nonblocking bool, typ, protocol int) (Socket, error) {
	addr := l.AddrPort()
	family := unix.AF_INET6
	typ |= unix.SOCK_CLOEXEC
	if addr.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	if nonblocking {
		typ |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, typ, protocol)
	if err != nil {
		return Socket{}, fmt.Errorf("socket for listener %s: %w", l.Name, err)
	}
	s := Socket{FD: fd}
	err = s.configure(family, addr, l.DualStack)
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w (another process holds it, or holds it as another user or without SO_REUSEPORT; `baton doctor` says who)", err)
	}
	if err != nil {
		s.close()
		return Socket{}, fmt.Errorf("listener %s on %s: %w", l.Name, l.Address, err)
	}
	return s, nil
}

func (s *Socket) configure(family int, addr netip.AddrPort, dualStack bool) error {
	options := []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		// Connections of a generation that ended linger in TIME_WAIT on this address.
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: as4(addr.Addr())}
	if family == unix.AF_INET6 {
		v6only := 1
		if dualStack {
			v6only = 0
		}
		options = append(options, struct{ level, name, value int }{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only})
		sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(s.FD, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("setsockopt: %w", err)
		}
	}
	err := unix.Bind(s.FD, sa)
	if errors.Is(err, unix.EACCES) {
		return fmt.Errorf("bind: %w (ports below net.ipv4.ip_unprivileged_port_start, usually 1024, need CAP_NET_BIND_SERVICE)", err)
	}
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	cookie, err := unix.GetsockoptUint64(s.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("read the cookie: %w", err)
	}
	s.Cookie = cookie
	return nil
}

func as4(a netip.Addr) (b [4]byte) {
	if a.Unmap().Is4() {
		b = a.Unmap().As4()
	}
	return b
}

func (s Socket) listen(backlog int) error {
	if err := unix.Listen(s.FD, backlog); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return nil
}

// dropped is how many segments the socket has let fall (sk_get_meminfo, net/core/sock.c).
func (s Socket) dropped() (uint32, error) {
	const drops = 8 // SK_MEMINFO_DROPS, include/uapi/linux/sock_diag.h
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.FD), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return info[drops], nil
}

func (s Socket) close() { unix.Close(s.FD) }

// bindAll makes the listening sockets of one generation, by listener, one a
// worker. mark is called on each before it listens.
func bindAll(c *config.Config, mark func(Socket)) (all Sockets, err error) {
	all = make(Sockets, len(c.Listeners))
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
	for _, l := range c.Listeners {
		if !l.Protocol.HasStreams() {
			continue
		}
		for range l.Workers {
			s, err := bind(l, c.Proxy.Nonblocking)
			if err != nil {
				return nil, err
			}
			all[l.Name] = append(all[l.Name], s)
			mark(s)
			// Listening, in no slot: the steering program never picks it.
			if err := s.listen(l.Backlog); err != nil {
				return nil, fmt.Errorf("listener %s on %s: %w", l.Name, l.Address, err)
			}
		}
	}
	return all, nil
}
