package quicid

import (
	"crypto/aes"
	"errors"
	"fmt"
)

// Limits of QUIC-LB (draft-ietf-quic-load-balancers-21, section 5).
const (
	minNonceLen = 4
	maxLBLen    = 19 // of server ID and nonce together: QUIC version 1 has IDs of 20 octets at most
)

// LB reads the connection IDs of servers that are not ours and follow QUIC-LB
// (draft-ietf-quic-load-balancers-21), in clear or encrypted in a single pass.
// A server ID and a nonce of other than 16 octets together are encrypted in
// four passes, which LB does not read.
type LB struct {
	Config      Config // 0 to 6: the first three bits
	ServerIDLen int    // octets, at least 1
	NonceLen    int    // octets, at least 4
	Key         *Key   // nil: in clear
}

// Check says what is wrong with an LB.
func (l LB) Check() error {
	switch {
	case l.Config >= Unroutable:
		return fmt.Errorf("quicid: config %d: 0 to %d name a server", l.Config, Unroutable-1)
	case l.ServerIDLen < 1:
		return errors.New("quicid: a server ID without an octet")
	case l.NonceLen < minNonceLen:
		return fmt.Errorf("quicid: a nonce of %d octets, at least %d are wanted", l.NonceLen, minNonceLen)
	case l.ServerIDLen+l.NonceLen > maxLBLen:
		return fmt.Errorf("quicid: server ID and nonce of %d octets together, %d are possible", l.ServerIDLen+l.NonceLen, maxLBLen)
	case l.Key != nil && l.ServerIDLen+l.NonceLen != aes.BlockSize:
		return fmt.Errorf("quicid: encrypted, server ID and nonce have to fill one block of %d octets", aes.BlockSize)
	}
	return nil
}

// ServerID appends to dst the server ID that cid names. ok is false if cid is
// too short, of another config, or if [LB.Check] finds a mistake. The five bits
// of length are not looked at: a server may fill them with noise. A cid that is
// longer than need be is one whose server appends octets of its own.
func (l LB) ServerID(dst, cid []byte) (id []byte, ok bool) {
	if l.Check() != nil || len(cid) < 1+l.ServerIDLen+l.NonceLen || Config(cid[0]>>configShift) != l.Config {
		return dst, false
	}
	if l.Key == nil {
		return append(dst, cid[1:1+l.ServerIDLen]...), true
	}
	c, err := aes.NewCipher(l.Key[:])
	if err != nil {
		return dst, false
	}
	var block [aes.BlockSize]byte
	c.Decrypt(block[:], cid[1:1+aes.BlockSize])
	return append(dst, block[:l.ServerIDLen]...), true
}
