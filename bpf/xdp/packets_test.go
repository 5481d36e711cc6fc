package xdp

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/baton-mesh/baton/quicid"
)

var (
	client4, vip4 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.9.0.1")
	client6, vip6 = netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8::1")
)

// frame is an Ethernet frame from the router with a packet to a port.
func frame(to netip.Addr, proto byte, port uint16, rest []byte) []byte {
	f := append(append([]byte(nil), ours[:]...), router[:]...)
	l4 := binary.BigEndian.AppendUint16(nil, 40000)
	l4 = append(binary.BigEndian.AppendUint16(l4, port), rest...)
	if to.Is6() {
		h := make([]byte, 40)
		h[0], h[6], h[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
		copy(h[8:], client6.AsSlice())
		copy(h[24:], to.AsSlice())
		return append(append(append(f, 0x86, 0xdd), h...), l4...)
	}
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
	copy(h[12:], client4.AsSlice())
	copy(h[16:], to.AsSlice())
	return append(append(append(f, 8, 0), h...), l4...)
}

// tcp is what follows the ports of a TCP header.
func tcp(flags byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	h := make([]byte, 16)
	h[8], h[9] = byte((20+len(options))/4)<<4, flags
	return append(h, options...)
}

func udp(payload []byte) []byte {
	return append(append(binary.BigEndian.AppendUint16(nil, uint16(8+len(payload))), 0, 0), payload...)
}

func cid(server uint32) []byte {
	var c [quicid.Len]byte
	quicid.Encode(&c, quicid.ID{ServerID: server, Slot: 3}, [quicid.RandomLen]byte{9})
	return c[:]
}

// short is a packet of QUIC whose connection ID names a server.
func short(server uint32) []byte {
	return udp(append(append([]byte{0x40}, cid(server)...), make([]byte, 24)...))
}

// encrypted is short under the key of config 1.
func encrypted(server uint32) []byte {
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: key1})
	if err != nil {
		panic(err)
	}
	var c [quicid.Len]byte
	keys.Encode(&c, 1, quicid.ID{ServerID: server, Slot: 3}, [quicid.RandomLen]byte{9})
	return udp(append(append([]byte{0x40}, c[:]...), make([]byte, 24)...))
}

var key1 = quicid.Key{7, 7, 7}

// about4 is the start of a packet from the VIP to the client, as an ICMP error repeats it.
func about4(proto byte, from, to uint16) []byte {
	h := make([]byte, 20)
	h[0], h[9] = 0x45, proto
	copy(h[12:], vip4.AsSlice())
	copy(h[16:], client4.AsSlice())
	h = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(h, from), to)
	return append(h, 0, 0, 0, 0)
}

// icmp4 is a message from a router on the way.
func icmp4(kind byte, about []byte) []byte {
	f := frame(vip4, 1, 0, nil)[:14+20]
	copy(f[14+12:], []byte{198, 51, 100, 1})
	return append(append(f, kind, 0, 0, 0, 0, 0, 0, 0), about...)
}

// withIPOptions puts an option of four octets into the IP header.
func withIPOptions(f []byte) []byte {
	with := append(append(bytes.Clone(f[:34]), 1, 1, 1, 0), f[34:]...)
	with[14] = 0x46
	return with
}

// long is a packet with a long header and a connection ID.
func long(first byte, version uint32, server uint32) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{first}, version), quicid.Len)
	return udp(append(append(b, cid(server)...), make([]byte, 40)...))
}

const (
	syn, ack = 0x02, 0x10
	isTCP    = 6
	isUDP    = 17
)

func optionOf(server uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{1, 1, 0xb7, 6}, server)
}
