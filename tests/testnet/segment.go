package testnet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The flags of a segment.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	ACK = 0x10
)

// Segment is a TCP segment in an IP packet. Options and Payload are parts of it.
type Segment struct {
	From, To netip.AddrPort
	Flags    byte
	Options  []byte
	Payload  []byte

	header []byte // TCP's, with the payload
}

// ParseSegment reads an IP packet. false: it is no whole TCP segment.
func ParseSegment(packet []byte) (s Segment, ok bool) {
	var from, to netip.Addr
	tcp := packet
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		head, total := int(packet[0]&15)*4, int(binary.BigEndian.Uint16(packet[2:]))
		fragment := binary.BigEndian.Uint16(packet[6:])&0x3fff != 0
		if packet[9] != unix.IPPROTO_TCP || fragment || head < 20 || total < head || total > len(packet) {
			return s, false
		}
		from, to = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
		tcp = packet[head:total]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		total := 40 + int(binary.BigEndian.Uint16(packet[4:]))
		if packet[6] != unix.IPPROTO_TCP || total > len(packet) {
			return s, false
		}
		from, to = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
		tcp = packet[40:total]
	}
	if len(tcp) < 20 || int(tcp[12]>>4)*4 < 20 || int(tcp[12]>>4)*4 > len(tcp) {
		return s, false
	}
	head := int(tcp[12]>>4) * 4
	return Segment{
		From:  netip.AddrPortFrom(from, binary.BigEndian.Uint16(tcp)),
		To:    netip.AddrPortFrom(to, binary.BigEndian.Uint16(tcp[2:])),
		Flags: tcp[13], Options: tcp[20:head], Payload: tcp[head:], header: tcp,
	}, true
}

// Option returns what an option of this kind carries behind its length, nil when
// there is none.
func (s Segment) Option(kind byte) []byte {
	if o := s.find(kind); o != nil {
		return o[2:]
	}
	return nil
}

// find returns a whole option.
func (s Segment) find(kind byte) []byte {
	for o := s.Options; len(o) > 0 && o[0] != 0; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return nil
		}
		if o[0] == kind {
			return o[:o[1]]
		}
		o = o[o[1]:]
	}
	return nil
}

// Strip writes no-operations over the first option of a kind, as a middlebox does
// that lets only those through that it knows.
func (s Segment) Strip(kind byte) {
	s.Change(kind, func(option []byte) {
		for i := range option {
			option[i] = 1
		}
	})
}

// Change lets somebody rewrite the first option of a kind and puts the checksum right.
func (s Segment) Change(kind byte, change func(option []byte)) {
	before := wordSum(s.Options)
	change(s.find(kind))
	// RFC 1624, equation 3; the options begin at an even octet.
	sum := uint32(^binary.BigEndian.Uint16(s.header[16:])) + uint32(^before) + uint32(wordSum(s.Options))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(s.header[16:], ^uint16(sum))
}

// wordSum is the sum of 16-bit words in ones' complement.
func wordSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
