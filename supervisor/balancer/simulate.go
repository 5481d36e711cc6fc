package balancer

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/quicid"
)

// Packet describes a packet to ask about, as the balancer would receive it.
type Packet struct {
	From netip.AddrPort `json:"from"`
	To   netip.AddrPort `json:"to"`
	// Protocol is tcp, udp or quic.
	Protocol string `json:"protocol"`
	// ServerID is what it carries: tcp as the option, quic as its connection ID. 0: nothing.
	ServerID uint32 `json:"server_id,omitempty"`
	// SYN makes the first packet of a TCP connection. QUIC without a ServerID is one
	// always.
	SYN bool `json:"syn,omitempty"`
}

// Where is where a packet would go, and why.
type Where struct {
	// Verdict is pass, drop, tx, redirect or aborted: what XDP does with it.
	Verdict string `json:"verdict"`
	// Real is who gets it. Empty: nobody.
	Real string `json:"real,omitempty"`
	// Reason is what has decided, Beside what has happened on the way to it.
	Reason string   `json:"reason"`
	Beside []string `json:"beside,omitempty"`
}

// The octets of the TCP option with which a client names its server.
const (
	optionKind, optionLen, optionNOP = 0xb7, 6, 1
)

// frame is the packet from its IP header on.
func (p Packet) frame() ([]byte, error) {
	from, to := p.From.Addr().Unmap(), p.To.Addr().Unmap()
	if !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() {
		return nil, fmt.Errorf("%w: %v and %v are not two addresses of one family", ErrRefused, p.From, p.To)
	}
	protocol, segment := byte(unix.IPPROTO_UDP), []byte(nil)
	switch p.Protocol {
	case "tcp":
		protocol, segment = unix.IPPROTO_TCP, p.tcp()
	case "udp":
		segment = p.udp(make([]byte, 32))
	case "quic":
		segment = p.udp(p.quic())
	default:
		return nil, fmt.Errorf("%w: protocol %q: tcp, udp or quic", ErrRefused, p.Protocol)
	}
	if from.Is6() {
		h := make([]byte, 40, 40+len(segment))
		h[0], h[6], h[7] = 6<<4, protocol, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(segment)))
		copy(h[8:], from.AsSlice())
		copy(h[24:], to.AsSlice())
		return append(h, segment...), nil
	}
	h := make([]byte, 20, 20+len(segment))
	h[0], h[8], h[9] = 4<<4|5, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(segment)))
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, segment...), nil
}

// checksum is that of an IPv4 header (RFC 791, section 3.1).
func checksum(header []byte) uint16 {
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// tcp is a segment: a SYN, or an ACK with the option where there is an id. Its
// checksum is left out, for nobody on the way looks at it.
func (p Packet) tcp() []byte {
	s := make([]byte, 20, 28)
	binary.BigEndian.PutUint16(s, p.From.Port())
	binary.BigEndian.PutUint16(s[2:], p.To.Port())
	s[13] = 0x10 // ACK
	if p.SYN {
		s[13] = 0x02
	}
	if p.ServerID != 0 {
		s = append(s, optionNOP, optionNOP, optionKind, optionLen)
		s = binary.BigEndian.AppendUint32(s, p.ServerID)
	}
	s[12] = byte(len(s)/4) << 4
	return s
}

func (p Packet) udp(payload []byte) []byte {
	s := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(s, p.From.Port())
	binary.BigEndian.PutUint16(s[2:], p.To.Port())
	binary.BigEndian.PutUint16(s[4:], uint16(8+len(payload)))
	return append(s, payload...)
}

// quic is an Initial with a connection ID of the client's choice, or a packet of a
// connection whose ID names its server (RFC 9000, sections 17.2.2 and 17.3.1).
func (p Packet) quic() []byte {
	if p.ServerID == 0 {
		b := make([]byte, 1200)
		b[0], b[4], b[5] = 0xc0, 1, 8
		copy(b[6:], "baton-si")
		return b
	}
	var cid [quicid.Len]byte
	quicid.Encode(&cid, quicid.ID{ServerID: p.ServerID}, [quicid.RandomLen]byte{})
	b := make([]byte, 1+len(cid)+24)
	b[0] = 0x40
	copy(b[1:], cid[:])
	return b
}

// Simulate asks the program itself where a packet would go. Nothing is counted
// and nothing remembered of it.
func (b *Balancer) Simulate(p Packet) (Where, error) {
	frame, err := p.frame()
	if err != nil {
		return Where{}, err
	}
	var where Where
	ran := b.post(func() {
		var found Explanation
		if found, err = b.kernel.Explain(frame); err != nil {
			return
		}
		where = Where{Verdict: found.Verdict, Reason: found.Reason, Beside: found.Beside}
		for _, r := range b.reals {
			if r.index == found.Index && found.Index != 0 {
				where.Real = r.conf.Name
			}
		}
	})
	if !ran {
		err = fmt.Errorf("%w: the balancer has ended", ErrRefused)
	}
	return where, err
}
