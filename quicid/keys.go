package quicid

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"sync"
)

// KeyLen is the length of a key, in octets: AES-128.
const KeyLen = 16

// Key encrypts the IDs of one config. All nodes of a cluster and the balancers
// in front of them have the same.
type Key [KeyLen]byte

// Keys writes and reads encrypted connection IDs, and readable ones beside
// them. The zero value has no key and knows the readable ones alone. It does not
// change and may be used by any number of goroutines: a rotation makes new Keys.
//
// An encrypted ID has the layout of a readable one, with the 16 octets behind
// the first as one block of AES-128 in ECB: QUIC-LB's single pass
// (draft-ietf-quic-load-balancers-21, section 5.4.1). The server ID that QUIC-LB
// speaks of is server_id, slot and worker together, its nonce the random octets.
//
// To change keys without losing a connection: give readers the new key under a
// config that is free, then let writers use that config, and take the old key
// away when no connection that began under it is left.
type Keys struct {
	blocks [Unroutable]cipher.Block // by config; nil where there is no key
}

// NewKeys has the keys by config, which is 1 to 6.
func NewKeys(keys map[Config]Key) (*Keys, error) {
	k := new(Keys)
	for c, key := range keys {
		if c == Readable || c >= Unroutable {
			return nil, fmt.Errorf("quicid: a key for config %d: 1 to %d have one", c, Unroutable-1)
		}
		var err error
		if k.blocks[c], err = aes.NewCipher(key[:]); err != nil {
			return nil, fmt.Errorf("quicid: %w", err)
		}
	}
	return k, nil
}

// Has reports whether IDs of this config can be written and read.
func (k *Keys) Has(c Config) bool {
	return c == Readable || c < Unroutable && k.blocks[c] != nil
}

// scratch holds blocks while they are worked on: what passes through an
// interface would be allocated for each ID.
var scratch = sync.Pool{New: func() any { return new([aes.BlockSize]byte) }}

// Encode writes the connection ID of owner id under config c. It reports false,
// and writes nothing, if c has no key; for [Readable] it is [Encode]. With an
// encrypted config an ID whose random octets repeat is visibly the same again,
// which links connections: take them from crypto/rand.
func (k *Keys) Encode(dst *[Len]byte, c Config, id ID, random [RandomLen]byte) bool {
	if !k.Has(c) {
		return false
	}
	Encode(dst, id, random)
	if c == Readable {
		return true
	}
	block := scratch.Get().(*[aes.BlockSize]byte)
	copy(block[:], dst[1:])
	k.blocks[c].Encrypt(block[:], block[:])
	dst[0] |= byte(c) << configShift
	copy(dst[1:], block[:])
	scratch.Put(block)
	return true
}

// Decode returns the owner that a connection ID names, and the config it was
// written under. ok is false for one of another length, without a server, or
// of a config without a key.
//
// The block has no checksum: with an encrypted config any 16 octets decode to
// some owner. What holds of [Decode] holds here all the more: check that the
// owner exists.
func (k *Keys) Decode(cid []byte) (id ID, c Config, ok bool) {
	c, ok = ConfigOf(cid)
	switch {
	case !ok || !k.Has(c):
		return ID{}, 0, false
	case c == Readable:
		id, ok = Decode(cid)
		return id, c, ok
	}
	block := scratch.Get().(*[aes.BlockSize]byte)
	copy(block[:], cid[1:])
	k.blocks[c].Decrypt(block[:], block[:])
	id = ID{ServerID: binary.BigEndian.Uint32(block[:]), Slot: block[4], Worker: block[5]}
	scratch.Put(block)
	if id.ServerID == 0 {
		return ID{}, 0, false
	}
	return id, c, true
}

// EncodeUnroutable writes a connection ID that names no owner: what a node
// without a server_id has to use.
func EncodeUnroutable(dst *[Len]byte, random [Len - 1]byte) {
	dst[0] = byte(Unroutable)<<configShift | (Len - 1)
	copy(dst[1:], random[:])
}
