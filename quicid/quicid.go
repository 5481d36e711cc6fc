// Package quicid writes a node, a slot and a worker into a QUIC connection ID,
// and reads them back, so that every packet of a connection names its owner and
// no router on the way needs a table.
//
// The layout is that of QUIC-LB (draft-ietf-quic-load-balancers), 17 octets:
//
//	 0           1               5      6        7                    17
//	┌─────┬─────┬───────────────┬──────┬────────┬─────────────────────┐
//	│cfg:3│len:5│ server_id u32 │ slot │ worker │ random, 10 octets   │
//	└─────┴─────┴───────────────┴──────┴────────┴─────────────────────┘
//	             big endian
//
// cfg says how the 16 octets behind it are read. 0 is the layout above, in
// clear, so the first octet of a readable ID is 0x10: cfg 0, 16 octets follow.
// 1 to 6 are encrypted under the key of that number ([Keys]), 7 marks an ID that
// carries no owner. The length never differs, so that a router may rely on it
// whoever made the ID.
//
// IDs of others are read beside ours: of any server that keeps to QUIC-LB ([LB])
// and of Katran's three versions ([DecodeKatran]).
//
// The package needs the standard library alone, and for IDs of ours it allocates
// nothing: any server that wants its connections steered can use it.
package quicid

import "encoding/binary"

const (
	// Len is the length of every connection ID, in octets.
	Len = 17
	// RandomLen is how many of them are random.
	RandomLen = 10
)

// Config says how an ID is read. It is the top three bits of the first octet.
type Config uint8

const (
	// Readable IDs carry their owner in clear.
	Readable Config = 0
	// Unroutable IDs carry no owner; routers treat their packets as those of
	// a new connection.
	Unroutable Config = 7
)

// ID is the owner of a connection.
type ID struct {
	ServerID uint32 // the node; never 0
	Slot     uint8  // the generation's place in the node's tables
	Worker   uint8  // which of the generation's sockets
}

const (
	configShift = 5
	lengthMask  = 1<<configShift - 1
)

// Encode writes the readable connection ID of owner id. The random octets keep
// the IDs of one owner apart and unlinkable: take them from crypto/rand, anew
// for each. An id whose ServerID is 0 makes a connection ID that nobody decodes.
func Encode(dst *[Len]byte, id ID, random [RandomLen]byte) {
	dst[0] = byte(Readable)<<configShift | (Len - 1)
	binary.BigEndian.PutUint32(dst[1:], id.ServerID)
	dst[5], dst[6] = id.Slot, id.Worker
	copy(dst[7:], random[:])
}

// Decode returns the owner that a readable connection ID names. ok is false for
// every other one: of another length, another config, or without a server.
//
// ok is no proof. The ID in a client's first packet is of its own choice and may
// look like ours, so whoever decodes has to check that the owner exists.
func Decode(cid []byte) (id ID, ok bool) {
	if c, ok := ConfigOf(cid); !ok || c != Readable {
		return ID{}, false
	}
	id = ID{ServerID: binary.BigEndian.Uint32(cid[1:]), Slot: cid[5], Worker: cid[6]}
	if id.ServerID == 0 {
		return ID{}, false
	}
	return id, true
}

// ConfigOf returns how cid is to be read. ok is false if it has not the length
// of ours, or does not say so itself. An unroutable one need not: its five bits
// of length may be random.
func ConfigOf(cid []byte) (c Config, ok bool) {
	if len(cid) != Len {
		return 0, false
	}
	c = Config(cid[0] >> configShift)
	return c, c == Unroutable || cid[0]&lengthMask == Len-1
}
