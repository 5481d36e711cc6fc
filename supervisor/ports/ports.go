// Package ports finds out who listens on an address of this network namespace.
//
// Looking never disturbs what it looks at: nothing here listens, so no
// connection can ever reach a socket of this package.
package ports

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Holder is one TCP socket that listens, or one of UDP that takes datagrams from anybody.
type Holder struct {
	Address netip.AddrPort `json:"address"`
	UDP     bool           `json:"udp,omitempty"`
	// DualStack says that a [::] socket takes IPv4 connections too.
	DualStack bool `json:"dual_stack,omitempty"`
	// UID is the user whose socket it is. Sockets share an address only
	// within one user (and with SO_REUSEPORT).
	UID uint32 `json:"uid"`
	// Inode is what /proc/PID/fd shows as socket:[inode].
	Inode uint32 `json:"inode"`
	// Cookie is what SO_COOKIE answers; the kernel never reuses one.
	Cookie uint64 `json:"cookie"`
	// Processes have a descriptor of the socket. It is empty for processes
	// that the caller may not look into, or that hide in another PID namespace.
	Processes []Process `json:"processes,omitempty"`
}

// Process is a process that has a descriptor of a socket.
type Process struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
}

// Holders returns the TCP sockets whose connections a listener on addr would
// meet or take, wildcard sockets included, the most specific first. An IPv6
// wildcard addr means IPv6 alone, unless dualStack.
//
// It asks the kernel for listening sockets only, so its cost does not grow with
// the number of connections; /proc is read only if there is a holder.
func Holders(addr netip.AddrPort, dualStack bool) ([]Holder, error) {
	return Strangers(addr, dualStack, func(uint64) bool { return false })
}

// Strangers are the Holders whose cookies are not known to the caller. Where
// there are none, /proc is not read.
func Strangers(addr netip.AddrPort, dualStack bool, known func(cookie uint64) bool) ([]Holder, error) {
	all, err := Unknown(known)
	if err != nil {
		return nil, err
	}
	holders := Overlapping(all, addr, dualStack)
	return holders, FindProcesses(holders)
}

// Unknown returns all TCP sockets that listen and are not known to the caller.
// Their Processes are not filled in. Who asks for thousands of addresses asks
// for this once, and then for what of it is [Overlapping] each.
func Unknown(known func(cookie uint64) bool) ([]Holder, error) {
	all, err := listening()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(h Holder) bool { return known(h.Cookie) }), nil
}

// Datagrams returns all UDP sockets that are bound and not connected. Their Processes
// are not filled in.
func Datagrams() ([]Holder, error) { return sockets(unix.IPPROTO_UDP, 1<<tcpClose, 0) }

// Overlapping returns those of some sockets whose connections a listener on addr
// would meet or take, the most specific first.
func Overlapping(all []Holder, addr netip.AddrPort, dualStack bool) []Holder {
	var holders []Holder
	for _, h := range all {
		if Overlap(addr, dualStack, h.Address, h.DualStack) {
			holders = append(holders, h)
		}
	}
	slices.SortFunc(holders, func(a, b Holder) int {
		return cmp.Or(
			cmp.Compare(width(a), width(b)),
			a.Address.Compare(b.Address),
			cmp.Compare(a.Cookie, b.Cookie),
		)
	})
	return holders
}

// Overlap reports whether one connection could match listeners on both
// addresses. The dual-stack flags matter for [::] alone.
func Overlap(a netip.AddrPort, aDual bool, b netip.AddrPort, bDual bool) bool {
	if a.Port() != b.Port() {
		return false
	}
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	switch {
	case x.Is4() == y.Is4():
		// A zone is no part of what is bound unless both have one.
		sameZone := x.Zone() == y.Zone() || x.Zone() == "" || y.Zone() == ""
		return x.IsUnspecified() || y.IsUnspecified() || x.WithZone("") == y.WithZone("") && sameZone
	case x.Is6():
		return aDual && x.IsUnspecified()
	default:
		return bDual && y.IsUnspecified()
	}
}

// width orders holders by how much they would take: one address, then every
// address of a family, then everything.
func width(h Holder) int {
	switch {
	case !h.Address.Addr().IsUnspecified():
		return 0
	case !h.DualStack:
		return 1
	default:
		return 2
	}
}
