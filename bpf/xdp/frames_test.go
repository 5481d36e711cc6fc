package xdp

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/baton-mesh/baton/quicid"
)

// What random frames are made of: few enough that flows meet again.
var (
	serverIDs = []uint32{1, 42, 65535, 65536, 1 << 31, 7, 99, 100000}
	vipsInUse = []VIP{
		{vip4, 443, false}, {vip4, 443, true}, {vip4, 0, true}, {vip4, 80, false},
		{vip6, 443, true}, {vip6, 0, false},
	}
)

// randomFrame is a frame that may mean something, often damaged.
func (w *world) randomFrame() []byte {
	r := w.rnd
	six := r.IntN(3) == 0
	l4, proto := w.randomTransport(six)
	ip := randomIP(r, six, proto, l4)
	f := append(append([]byte(nil), ours[:]...), router[:]...)
	if r.IntN(40) == 0 {
		f[5] = 9
	}
	kind := uint16(0x0800)
	if six {
		kind = 0x86dd
	}
	if r.IntN(60) == 0 {
		kind = one(r, uint16(0x8100), 0x88a8, 0x0806, 0x86dd, 0x0800)
	}
	f = append(binary.BigEndian.AppendUint16(f, kind), ip...)
	switch r.IntN(12) {
	case 0:
		f = f[:14+r.IntN(len(f)-13)]
	case 1:
		for range 1 + r.IntN(3) {
			// Not the addresses: nearly all that came of it would not be for us.
			// Nor of a frame in several buffers the lengths: its octets are counted by them.
			at := 14 + r.IntN(len(f)-14)
			if length := at >= 16 && at < 20; at >= 14+12 && at < 14+20 || length && len(f) > 3000 {
				continue
			}
			f[at] = byte(r.Uint32())
		}
	}
	return f
}

// randomTransport is what follows an IP header.
func (w *world) randomTransport(six bool) (l4 []byte, proto byte) {
	r := w.rnd
	ports := binary.BigEndian.AppendUint16(nil, uint16(40000+r.IntN(6)))
	ports = binary.BigEndian.AppendUint16(ports, one(r, uint16(443), 443, 443, 80, 8443))
	switch n := r.IntN(20); {
	case n < 9:
		return append(ports, w.randomTCP()...), isTCP
	case n < 16:
		return append(ports, w.randomUDP()...), isUDP
	case n < 19:
		// An ICMP error: about a packet from the VIP, most often.
		ports[0], ports[1], ports[2], ports[3] = ports[2], ports[3], ports[0], ports[1]
		about := randomIP(r, six, one(r, byte(isTCP), isUDP, 1, 44), append(ports, 0, 0, 0, 0, 0, 0))
		if six {
			swap(about[8:24], about[24:40])
			return append([]byte{byte(r.IntN(6)), 0, 0, 0, 0, 0, 0, 0}, about...), 58
		}
		swap(about[12:16], about[16:20])
		return append([]byte{one(r, byte(3), 3, 11, 12, 5, 8), 0, 0, 0, 0, 0, 0, 0}, about...), 1
	}
	return append(ports, make([]byte, 20)...), one(r, byte(0), 1, 43, 44, 47, 50, 58, 132)
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

func (w *world) randomTCP() []byte {
	r := w.rnd
	var o []byte
	for len(o) < 40 && r.IntN(4) > 0 {
		id := one(r, serverIDs...)
		if r.IntN(10) == 0 {
			id = r.Uint32()
		}
		switch r.IntN(9) {
		case 0, 1:
			o = append(o, 1)
		case 2:
			o = append(o, timestamps...)
		case 3:
			o = append(o, 1, 1, 5, 10, 1, 2, 3, 4, 5, 6, 7, 8)
		case 4:
			o = append(o, byte(r.Uint32()), byte(r.IntN(12)))
		case 5:
			o = append(o, byte(r.IntN(3)))
		default:
			o = append(o, 0xb7, 6)
			if w.m.hostOrder {
				o = binary.LittleEndian.AppendUint32(o, id)
			} else {
				o = binary.BigEndian.AppendUint32(o, id)
			}
		}
	}
	h := tcp(one(r, byte(ack), ack, ack, syn, ack|4, ack|1, syn|ack, 0), o[:min(len(o), 40)]...)
	if r.IntN(20) == 0 {
		h[8] = byte(r.Uint32())
	}
	return append(h, make([]byte, r.IntN(60))...)
}

func (w *world) randomUDP() []byte {
	r := w.rnd
	var c [quicid.Len]byte
	id := quicid.ID{ServerID: one(r, serverIDs...), Slot: 3}
	switch r.IntN(5) {
	case 0:
		w.m.keys.Encode(&c, 1, id, [quicid.RandomLen]byte{byte(r.Uint32())})
	case 1:
		for i := range c {
			c[i] = byte(r.Uint32())
		}
	case 2: // Katran's
		c[0] = 0x40 * byte(1+r.IntN(3))
		binary.BigEndian.PutUint32(c[1:], id.ServerID)
	case 3:
		c[0] = byte(r.Uint32()) // any config
	default:
		quicid.Encode(&c, id, [quicid.RandomLen]byte{byte(r.Uint32())})
	}
	var d []byte
	if r.IntN(2) == 0 {
		d = append([]byte{byte(r.IntN(128))}, c[:]...)
	} else {
		d = binary.BigEndian.AppendUint32([]byte{0x80 | byte(r.Uint32())}, one(r, uint32(1), 1, 0x6b3343cf, 0, r.Uint32()))
		d = append(append(d, one(r, byte(17), 17, 17, 8, 4, 20, 21, byte(r.Uint32()))), c[:]...)
	}
	d = append(d, make([]byte, r.IntN(80))...)
	u := udp(d[:len(d)-r.IntN(2)*r.IntN(len(d))])
	if r.IntN(20) == 0 {
		u[0], u[1] = byte(r.IntN(2)), byte(r.Uint32())
	}
	return u
}

// randomIP puts a header in front, as a rule an honest one.
func randomIP(r *rand.Rand, six bool, proto byte, l4 []byte) []byte {
	if r.IntN(50) == 0 {
		l4 = append(l4, make([]byte, 1480+r.IntN(7000))...) // in several buffers, or too long for a link
	}
	if six {
		src, dst := client6.As16(), one(r, vip6, vip6, vip6, vip6, vip6, client6).As16()
		src[15] = byte(r.IntN(4))
		h := make([]byte, 40)
		h[0], h[6], h[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
		copy(h[8:], src[:])
		copy(h[24:], dst[:])
		return append(h, l4...)
	}
	src, dst := client4.As4(), one(r, vip4, vip4, vip4, vip4, vip4, netip.MustParseAddr("10.9.0.2")).As4()
	src[3] = byte(r.IntN(4))
	h := make([]byte, 20, 60)
	if r.IntN(8) == 0 {
		h = h[:20+4*(1+r.IntN(10))]
	}
	h[0], h[8], h[9] = 0x40|byte(len(h)/4), 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(l4)))
	if r.IntN(25) == 0 {
		h[6], h[7] = one(r, byte(0x20), 0x40, 0, 0x1f), byte(r.IntN(2))
	}
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	return append(h, l4...)
}
