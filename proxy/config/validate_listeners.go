package config

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

func (v validator) listeners() names {
	const path = "listeners"
	ls := v.c.Listeners
	known := v.names(path, len(ls), func(i int) string { return ls[i].Name })
	switch {
	case len(ls) == 0:
		v.add(path, "there is none", "write at least one")
	case len(ls) > maxListeners:
		v.add(path, fmt.Sprintf("there are %d", len(ls)), fmt.Sprintf("write at most %d", maxListeners))
		return known
	}
	for i, l := range ls {
		v.listener(item(path, i), l)
	}
	v.overlaps()
	v.fdNames()
	return known
}

// maxFDNames is what one variable of the environment may hold: the kernel takes
// no string of more than 32 pages (MAX_ARG_STRLEN, include/uapi/linux/binfmts.h).
const maxFDNames = 32<<12 - len("LISTEN_FDNAMES=") - 1

// fdNames refuses names that a generation cannot be told, one for each socket.
func (v validator) fdNames() {
	length := -1 // a colon between two
	for _, l := range v.c.Listeners {
		length += l.Workers * (len(l.Name) + 1)
	}
	if length > maxFDNames {
		v.add("listeners", fmt.Sprintf("their names, once for each worker, take %d octets in LISTEN_FDNAMES", length),
			fmt.Sprintf("shorten them, or have fewer workers: %d are possible", maxFDNames))
	}
}

func (v validator) listener(path string, l Listener) {
	choice(v, path+".protocol", "protocol", l.Protocol, protocols, nil)
	choice(v, path+".worker_choice", "worker_choice", l.WorkerChoice, workerChoices, nil)
	ap, ok := v.address(path+".address", l.Address)
	if ok && l.DualStack && ap.Addr() != netip.IPv6Unspecified() {
		v.add(path+".dual_stack", "only [::] can serve both families", "leave it out, or write the address as [::]")
	}
	v.bounds(path+".workers", l.Workers, 1, maxWorkers)
	v.bounds(path+".backlog", l.Backlog, 1, math.MaxInt32)
	v.notNegative(path+".max_connections", l.MaxConnections)
	v.tls(path+".tls", l)
	if l.HTTP3 && l.Protocol != HTTPS {
		v.add(path+".http3", fmt.Sprintf("has no meaning for %s", l.Protocol), "leave it out, or write protocol: https")
	}
	switch l.Protocol {
	case HTTP, HTTPS:
		if l.MaxHeaderBytes == 0 {
			v.add(path+".max_header_bytes", "is 0, and no request has no head", "write it as 64KiB")
		}
	case TCP, UDP:
		v.httpOnly(path+".header_timeout", l.Protocol, l.HeaderTimeout != 0)
		v.httpOnly(path+".max_header_bytes", l.Protocol, l.MaxHeaderBytes != 0)
		v.httpOnly(path+".max_body_bytes", l.Protocol, l.MaxBodyBytes != 0)
		v.httpOnly(path+".trusted_proxies", l.Protocol, len(l.TrustedProxies) > 0)
	}
	if l.Protocol == UDP && l.IdleTimeout == 0 {
		v.add(path+".idle_timeout", "is 0, and nothing but silence ends a flow of udp", "write it as 30s")
	}
}

// httpOnly reports a key that a listener of another protocol would silently ignore.
func (v validator) httpOnly(path string, p Protocol, set bool) {
	if set {
		v.add(path, "has no meaning for "+string(p), "leave it out")
	}
}

// overlaps reports listeners that would receive each other's connections. The
// kernel takes both and lets the most specific win, silently.
func (v validator) overlaps() {
	before := map[uint16]*samePort{}
	bounds := make([]bound, len(v.c.Listeners))
	for i, l := range v.c.Listeners {
		mine, ok := boundBy(l)
		if !ok {
			continue
		}
		bounds[i] = mine
		port := before[mine.ap.Port()]
		if port == nil {
			port = &samePort{exact: map[netip.Addr][]int{}}
			before[mine.ap.Port()] = port
		}
		for _, j := range port.candidates(mine) {
			if mine.overlaps(bounds[j]) {
				other := v.c.Listeners[j]
				v.add(item("listeners", i)+".address",
					fmt.Sprintf("%s overlaps listener %s, %s", show(l.Address), show(other.Name), show(other.Address)),
					v.onLine(item("listeners", j)))
				break // one is enough, where thousands may share a port
			}
		}
		port.add(mine, i)
	}
}

// samePort holds the listeners of one port so that each of thousands is not
// compared with every other.
type samePort struct {
	all, wild []int
	exact     map[netip.Addr][]int // without zone
}

func (s *samePort) add(b bound, i int) {
	s.all = append(s.all, i)
	if addr := b.ap.Addr().Unmap().WithZone(""); addr.IsUnspecified() {
		s.wild = append(s.wild, i)
	} else {
		s.exact[addr] = append(s.exact[addr], i)
	}
}

// candidates are those that may overlap b, in the order of the file.
func (s *samePort) candidates(b bound) []int {
	addr := b.ap.Addr().Unmap().WithZone("")
	if addr.IsUnspecified() {
		return s.all
	}
	if len(s.wild) == 0 {
		return s.exact[addr]
	}
	near := slices.Concat(s.exact[addr], s.wild)
	slices.Sort(near)
	return near
}

// bound is what a listening socket is bound to.
type bound struct {
	ap       netip.AddrPort
	dual     bool // [::] takes IPv4 too
	tcp, udp bool
}

func boundBy(l Listener) (bound, bool) {
	ap, err := netip.ParseAddrPort(l.Address)
	return bound{ap, l.DualStack, l.Protocol.HasStreams(), l.HasDatagrams()}, err == nil
}

// overlaps reports whether one connection could be meant for both.
func (b bound) overlaps(other bound) bool {
	return b.ap.Port() == other.ap.Port() && (b.tcp && other.tcp || b.udp && other.udp) && (b.covers(other) || other.covers(b))
}

// covers reports whether b takes what is sent to other's address.
func (b bound) covers(other bound) bool {
	mine, theirs := b.ap.Addr().Unmap(), other.ap.Addr().Unmap()
	if mine.Zone() == "" || theirs.Zone() == "" {
		mine, theirs = mine.WithZone(""), theirs.WithZone("") // an address without a zone may be on any link
	}
	switch {
	case mine == theirs:
		return true
	case mine == netip.IPv4Unspecified():
		return theirs.Is4()
	case mine == netip.IPv6Unspecified():
		return theirs.Is6() || b.dual
	}
	return false
}
