package quicid

import "encoding/binary"

// Katran is the owner in a connection ID of Meta's layouts, which the balancer
// Katran routes by and mvfst writes: versions 1 to 3 differ in the room for the
// host (katran/lib/bpf/pckt_parsing.h, mvfst quic/codec/DefaultConnectionIdAlgo.h).
//
//	version   host          worker        process    octets, at least
//	1         bits 2..17    bits 18..25   bit 26     4
//	2         octets 1..3   octet 4       bit 40     6
//	3         octets 1..4   octet 5       bit 48     7
//
// The version is in bits 0 and 1, counted from the most significant of octet 0.
type Katran struct {
	Version uint8  // 1 to 3
	Host    uint32 // 16, 24 or 32 bits; 0 is no host
	Worker  uint8
	Process uint8 // 0 or 1: which of two processes in a takeover
}

// DecodeKatran reads a connection ID of Katran's. ok is false for one that is too
// short, has another version or no host. Readable IDs of ours begin with 00 and
// are none of these.
func DecodeKatran(cid []byte) (k Katran, ok bool) {
	if len(cid) == 0 {
		return Katran{}, false
	}
	k.Version = cid[0] >> 6
	switch {
	case k.Version == 1 && len(cid) >= 4:
		bits := binary.BigEndian.Uint32(cid)
		k.Host, k.Worker, k.Process = bits>>14&0xffff, uint8(bits>>6), uint8(bits>>5&1)
	case k.Version == 2 && len(cid) >= 6:
		k.Host, k.Worker, k.Process = binary.BigEndian.Uint32(cid)&0xffffff, cid[4], cid[5]>>7
	case k.Version == 3 && len(cid) >= 7:
		k.Host, k.Worker, k.Process = binary.BigEndian.Uint32(cid[1:]), cid[5], cid[6]>>7
	}
	if k.Host == 0 {
		return Katran{}, false
	}
	return k, true
}
