package ports

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Chain is what the kernel may have to walk when a socket is bound to a port: its
// table of bound sockets has one bucket a port, and in it a list an address
// (inet_csk_bind_conflict, net/ipv4/inet_connection_sock.c; before Linux 6.1
// one list for all addresses). Accepted connections are in it, too. While it is
// walked the bucket is locked, and no connection can be accepted on the port.
type Chain struct {
	Port uint16
	// Sockets are those bound to the port, Longest those of them at one address.
	Sockets, Longest int
	// Listening are those that listen; their Processes are not filled in.
	Listening []Holder
}

// States of linux/tcp_states.h that have no socket in the table: half-open
// handshakes.
const tcpSynRecv, tcpNewSynRecv = 3, 12

// ChainOf counts the sockets of a port. The kernel looks at every socket of the
// network namespace for it, some 0.5 µs each.
func ChainOf(port uint16) (Chain, error) {
	c := Chain{Port: port}
	all, err := sockets(unix.IPPROTO_TCP, ^uint32(0)&^(1<<tcpSynRecv|1<<tcpNewSynRecv), port)
	if err != nil {
		return c, err
	}
	listening, err := listening()
	if err != nil {
		return c, err
	}
	at := map[netip.Addr]int{}
	for _, h := range all {
		at[h.Address.Addr()]++
		c.Longest = max(c.Longest, at[h.Address.Addr()])
	}
	c.Sockets = len(all)
	for _, h := range listening {
		if h.Address.Port() == port {
			c.Listening = append(c.Listening, h)
		}
	}
	return c, nil
}

// Addresses is on how many addresses of the port somebody listens.
func (c Chain) Addresses() int {
	at := map[netip.Addr]bool{}
	for _, h := range c.Listening {
		at[h.Address.Addr()] = true
	}
	return len(at)
}

// Exclusive are the listening sockets without SO_REUSEPORT, as far as the caller
// may find out.
func (c Chain) Exclusive() []Holder {
	var all []Holder
	for _, h := range c.Listening {
		if shares, err := h.Shares(); err == nil && !shares {
			all = append(all, h)
		}
	}
	return all
}

// BindTime is how long it takes now to bind one more socket to an address, at
// best: the socket is closed without listening.
func BindTime(addr netip.AddrPort, dualStack bool, uid uint32) time.Duration {
	best := time.Duration(0)
	for range 5 {
		// One that is refused has walked the list as well.
		if took, _ := bind(addr, dualStack, true, uid); best == 0 || took > 0 && took < best {
			best = took
		}
	}
	return best
}
