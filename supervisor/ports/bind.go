package ports

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Shares reports whether the holder has SO_REUSEPORT, so that another socket of
// its user could join it. The kernel shows the option to the owner alone;
// Shares finds out by binding a second socket beside it, as the holder's user,
// and closing it without listening: a socket enters a group when it listens.
//
// An error that wraps [unix.EPERM] says that the caller may not act for that user.
func (h Holder) Shares() (bool, error) {
	_, err := bind(h.Address, h.DualStack, true, h.UID)
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil
	}
	return err == nil, err
}

// Free returns nil if a socket could be bound to addr that shares it with
// nobody; sockets in TIME_WAIT are no obstacle. The error wraps
// [unix.EADDRINUSE], [unix.EACCES] (a port below ip_unprivileged_port_start) or
// [unix.EADDRNOTAVAIL] (not an address of this host).
func Free(addr netip.AddrPort, dualStack bool) error {
	_, err := bind(addr, dualStack, false, uint32(os.Geteuid()))
	return err
}

// FreeUDP is [Free] for a socket of UDP. Where somebody has the address it is not
// tried: such a socket would take datagrams from the moment it is bound.
func FreeUDP(addr netip.AddrPort, dualStack bool) error {
	family := unix.AF_INET
	if is6(addr) {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if is6(addr) {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, toInt(!dualStack)); err != nil {
			return fmt.Errorf("bind %s: setsockopt: %w", addr, err)
		}
	}
	if err := unix.Bind(fd, sockaddr(addr)); err != nil {
		return fmt.Errorf("bind %s: %w", addr, err)
	}
	return nil
}

// bind binds a socket of user uid, and closes it. It returns how long bind(2) took.
func bind(addr netip.AddrPort, dualStack, reusePort bool, uid uint32) (time.Duration, error) {
	fd, err := socket(addr, uid)
	if err != nil {
		return 0, fmt.Errorf("bind %s as uid %d: %w", addr, uid, err)
	}
	defer unix.Close(fd)
	options := []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, toInt(reusePort)},
	}
	if is6(addr) {
		options = append(options, struct{ level, name, value int }{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, toInt(!dualStack)})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return 0, fmt.Errorf("bind %s: setsockopt: %w", addr, err)
		}
	}
	began := time.Now()
	err = unix.Bind(fd, sockaddr(addr))
	took := time.Since(began)
	if err != nil {
		return took, fmt.Errorf("bind %s: %w", addr, err)
	}
	return took, nil
}

// socket makes a TCP socket that belongs to uid.
func socket(addr netip.AddrPort, uid uint32) (int, error) {
	family := unix.AF_INET
	if is6(addr) {
		family = unix.AF_INET6
	}
	// A socket belongs to the fsuid of the thread that makes it. The raw call
	// changes this thread alone, and no other user of the process sees it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := setfsuid(uid)
	defer setfsuid(self)
	if uid != setfsuid(uid) {
		return -1, unix.EPERM
	}
	return unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
}

// setfsuid returns the fsuid before the call; the kernel reports no failure.
func setfsuid(uid uint32) uint32 {
	before, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	return uint32(before)
}

func is6(addr netip.AddrPort) bool { return addr.Addr().Is6() && !addr.Addr().Is4In6() }

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if !is6(addr) {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().Unmap().As4()}
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if zone := addr.Addr().Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			sa.ZoneId = uint32(n)
		} else if i, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(i.Index)
		}
	}
	return sa
}

func toInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
