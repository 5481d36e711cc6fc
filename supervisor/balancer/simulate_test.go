package balancer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/baton-mesh/baton/quicid"
)

func TestSimulatedPacketsAreWhole(t *testing.T) {
	from4, to4 := netip.MustParseAddrPort("192.0.2.7:40000"), netip.MustParseAddrPort("10.9.0.1:443")
	from6, to6 := netip.MustParseAddrPort("[2001:db8::7]:40000"), netip.MustParseAddrPort("[2001:db8::1]:443")
	for _, p := range []Packet{
		{from4, to4, "tcp", 0, true}, {from4, to4, "tcp", 7, false}, {from6, to6, "tcp", 7, false},
		{from4, to4, "udp", 0, false}, {from4, to4, "quic", 0, false}, {from6, to6, "quic", 7, false},
	} {
		frame, err := p.frame()
		if err != nil {
			t.Errorf("%+v: %v", p, err)
			continue
		}
		segment, protocol := []byte(nil), 0
		if p.From.Addr().Is4() {
			h, err := ipv4.ParseHeader(frame)
			if err != nil || h.TotalLen != len(frame) || !h.Src.Equal(from4.Addr().AsSlice()) || !h.Dst.Equal(to4.Addr().AsSlice()) || checksum(frame[:20]) != 0 {
				t.Errorf("%+v: header %v, %v", p, h, err)
			}
			segment, protocol = frame[20:], h.Protocol
		} else {
			h, err := ipv6.ParseHeader(frame)
			if err != nil || h.PayloadLen != len(frame)-40 || !h.Src.Equal(from6.Addr().AsSlice()) || !h.Dst.Equal(to6.Addr().AsSlice()) {
				t.Errorf("%+v: header %v, %v", p, h, err)
			}
			segment, protocol = frame[40:], h.NextHeader
		}
		if binary.BigEndian.Uint16(segment) != 40000 || binary.BigEndian.Uint16(segment[2:]) != 443 {
			t.Errorf("%+v: ports %x", p, segment[:4])
		}
		switch p.Protocol {
		case "tcp":
			option := []byte{0xb7, 6, 0, 0, 0, 7}
			if protocol != 6 || int(segment[12]>>4)*4 != len(segment) || segment[13]&2 != 0 != p.SYN || bytes.Contains(segment[20:], option) != (p.ServerID == 7) {
				t.Errorf("%+v: segment %x", p, segment)
			}
		case "quic":
			payload := segment[8:]
			if p.ServerID == 0 {
				if len(payload) < 1200 || payload[0] != 0xc0 || binary.BigEndian.Uint32(payload[1:]) != 1 {
					t.Errorf("%+v: no Initial: %x", p, payload[:20])
				}
			} else if id, ok := quicid.Decode(payload[1:][:quicid.Len]); !ok || id.ServerID != 7 || payload[0]&0xc0 != 0x40 {
				t.Errorf("%+v: %x names %v, %v", p, payload, id, ok)
			}
			fallthrough
		case "udp":
			if protocol != 17 || int(binary.BigEndian.Uint16(segment[4:])) != len(segment) {
				t.Errorf("%+v: datagram %x", p, segment[:8])
			}
		}
	}
	for _, p := range []Packet{{From: from4, To: to6, Protocol: "tcp"}, {From: from4, To: to4, Protocol: "sctp"}, {To: to4, Protocol: "udp"}} {
		if _, err := p.frame(); !errors.Is(err, ErrRefused) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
