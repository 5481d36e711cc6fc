package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// From linux/tcp_states.h. A socket of UDP that is not connected is closed.
	tcpClose  = 7
	tcpListen = 10

	// From linux/inet_diag.h.
	requestLen = 56 // struct inet_diag_req_v2
	answerLen  = 72 // struct inet_diag_msg
	attrMemory = 7  // INET_DIAG_SKMEMINFO
	attrV6Only = 11 // INET_DIAG_SKV6ONLY

	// From linux/sock_diag.h: what is where in INET_DIAG_SKMEMINFO, in words of 32 bits.
	memoryQueued  = 0 // SK_MEMINFO_RMEM_ALLOC
	memoryRoom    = 1 // SK_MEMINFO_RCVBUF
	memoryDropped = 8 // SK_MEMINFO_DROPS
)

// request is a struct inet_diag_req_v2 that asks for sockets of one protocol and
// address family.
type request struct {
	family   uint8
	protocol uint8
	states   uint32 // a bit for each
	port     uint16 // of this host; 0: any
	memory   bool   // asks for INET_DIAG_SKMEMINFO, too
}

func (request) Len() int { return requestLen }

func (r request) Serialize() []byte {
	b := make([]byte, requestLen)
	b[0], b[1] = r.family, r.protocol
	if r.memory {
		b[2] = 1 << (attrMemory - 1)
	}
	binary.NativeEndian.PutUint32(b[4:], r.states)
	binary.BigEndian.PutUint16(b[8:], r.port)
	return b
}

// listening asks the kernel for the listening TCP sockets of this network
// namespace. Processes are not filled in.
func listening() ([]Holder, error) { return sockets(unix.IPPROTO_TCP, 1<<tcpListen, 0) }

// sockets asks the kernel for sockets, as a request does.
func sockets(protocol uint8, states uint32, port uint16) ([]Holder, error) {
	var holders []Holder
	seen := make(map[uint64]bool) // a dump may repeat a socket when others come and go
	err := dump(request{protocol: protocol, states: states, port: port}, func(answer []byte) error {
		h, err := parseAnswer(answer)
		if err != nil {
			return err
		}
		h.UDP = protocol == unix.IPPROTO_UDP
		if !seen[h.Cookie] {
			seen[h.Cookie] = true
			holders = append(holders, h)
		}
		return nil
	})
	return holders, err
}

// dump asks for the sockets of both families.
func dump(r request, each func(answer []byte) error) error {
	for _, r.family = range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(r)
		answers, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // the kernel was built without this family
		}
		if err != nil {
			return fmt.Errorf("list sockets by sock_diag: %w", err)
		}
		for _, answer := range answers {
			if err := each(answer); err != nil {
				return err
			}
		}
	}
	return nil
}

// Buffer is what waits at a socket of UDP to be read, and what found no room there.
type Buffer struct {
	Queued, Room uint32 // octets, as the kernel accounts for them, with what it needs beside
	// Dropped counts datagrams since the socket was made: those that found no room, and
	// those that a filter or a wrong checksum kept out (sk_drops). It wraps.
	Dropped uint32
}

// Buffers returns what waits at each socket of UDP of this network namespace that is
// bound and not connected, by cookie.
func Buffers() (map[uint64]Buffer, error) {
	all := map[uint64]Buffer{}
	err := dump(request{protocol: unix.IPPROTO_UDP, states: 1 << tcpClose, memory: true}, func(answer []byte) error {
		if len(answer) < answerLen {
			return fmt.Errorf("sock_diag answered %d bytes, want at least %d", len(answer), answerLen)
		}
		if m := attribute(answer, attrMemory); len(m) >= 4*(memoryDropped+1) {
			word := func(i int) uint32 { return binary.NativeEndian.Uint32(m[4*i:]) }
			all[cookieOf(answer)] = Buffer{word(memoryQueued), word(memoryRoom), word(memoryDropped)}
		}
		return nil
	})
	return all, err
}

// cookieOf reads two u32 of an answer, the lower half first whatever the byte order.
func cookieOf(b []byte) uint64 {
	return uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32
}

// parseAnswer reads a struct inet_diag_msg and the attributes behind it:
//
//	0      1              4     6      8    24   40      44      52 64  68    72
//	family state,timer,.. sport dport  src  dst  ifindex cookie  …  uid inode attributes
func parseAnswer(b []byte) (Holder, error) {
	if len(b) < answerLen {
		return Holder{}, fmt.Errorf("sock_diag answered %d bytes, want at least %d", len(b), answerLen)
	}
	port := binary.BigEndian.Uint16(b[4:])
	addr := netip.AddrFrom4([4]byte(b[8:12]))
	if b[0] == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(b[8:24]))
		if ifindex := binary.NativeEndian.Uint32(b[40:]); ifindex != 0 && addr.IsLinkLocalUnicast() {
			addr = addr.WithZone(strconv.FormatUint(uint64(ifindex), 10))
		}
	}
	h := Holder{
		Address: netip.AddrPortFrom(addr, port),
		Cookie:  cookieOf(b),
		UID:     binary.NativeEndian.Uint32(b[64:]),
		Inode:   binary.NativeEndian.Uint32(b[68:]),
	}
	if b[0] == unix.AF_INET6 && addr.IsUnspecified() {
		v6Only := attribute(b, attrV6Only)
		h.DualStack = len(v6Only) == 0 || v6Only[0] == 0
	}
	return h, nil
}

// attribute is the value of the first attribute of a kind behind a struct
// inet_diag_msg; nil: it is not there. Each has its length and its kind, two octets
// each, then the value, up to a multiple of four (netlink(7)).
func attribute(answer []byte, kind uint16) []byte {
	const head = 4
	for b := answer[answerLen:]; len(b) >= head; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < head || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return b[head:n]
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}
