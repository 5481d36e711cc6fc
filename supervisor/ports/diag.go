package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"syscall"

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
	attrV6Only = 11 // INET_DIAG_SKV6ONLY
)

// request is a struct inet_diag_req_v2 that asks for sockets of one protocol and
// address family.
type request struct {
	family   uint8
	protocol uint8
	states   uint32 // a bit for each
	port     uint16 // of this host; 0: any
}

func (request) Len() int { return requestLen }

func (r request) Serialize() []byte {
	b := make([]byte, requestLen)
	b[0], b[1] = r.family, r.protocol
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
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(request{family, protocol, states, port})
		answers, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // the kernel was built without this family
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets by sock_diag: %w", err)
		}
		for _, answer := range answers {
			h, err := parseAnswer(answer)
			if err != nil {
				return nil, err
			}
			h.UDP = protocol == unix.IPPROTO_UDP
			if !seen[h.Cookie] {
				seen[h.Cookie] = true
				holders = append(holders, h)
			}
		}
	}
	return holders, nil
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
		// Two u32, the lower half first whatever the byte order.
		Cookie: uint64(binary.NativeEndian.Uint32(b[44:])) | uint64(binary.NativeEndian.Uint32(b[48:]))<<32,
		UID:    binary.NativeEndian.Uint32(b[64:]),
		Inode:  binary.NativeEndian.Uint32(b[68:]),
	}
	if b[0] == unix.AF_INET6 && addr.IsUnspecified() {
		attrs, err := nl.ParseRouteAttr(b[answerLen:])
		if err != nil {
			return Holder{}, fmt.Errorf("sock_diag attributes: %w", err)
		}
		h.DualStack = !v6Only(attrs)
	}
	return h, nil
}

func v6Only(attrs []syscall.NetlinkRouteAttr) bool {
	for _, a := range attrs {
		if a.Attr.Type == attrV6Only && len(a.Value) > 0 {
			return a.Value[0] != 0
		}
	}
	return false
}
