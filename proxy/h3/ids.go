package h3

import (
	"crypto/rand"
	"fmt"

	"github.com/quic-go/quic-go"

	"github.com/baton-mesh/baton/quicid"
)

// IDs makes the connection IDs of one worker: quic-go asks it whenever a
// connection needs one, for a Retry as well.
type IDs struct {
	// Owner is the node, the slot and the worker. With a ServerID of 0 the IDs
	// name nobody, and a connection is kept together by its addresses alone.
	Owner quicid.ID
	// Keys and Config encrypt the owner. The zero Keys write readable IDs.
	Keys   *quicid.Keys
	Config quicid.Config
}

// ConnectionIDLen is the length of every ID.
func (IDs) ConnectionIDLen() int { return quicid.Len }

// GenerateConnectionID makes the next ID. It fails without the key of Config: a
// connection is refused rather than that an owner be shown which was to be hidden.
func (g IDs) GenerateConnectionID() (quic.ConnectionID, error) {
	var id [quicid.Len]byte
	var random [quicid.Len - 1]byte
	rand.Read(random[:])
	switch {
	case g.Owner.ServerID == 0:
		quicid.EncodeUnroutable(&id, random)
	case !g.Keys.Encode(&id, g.Config, g.Owner, [quicid.RandomLen]byte(random[:])):
		return quic.ConnectionID{}, fmt.Errorf("no key of config %d for connection IDs", g.Config)
	}
	return quic.ConnectionIDFromBytes(id[:]), nil
}
