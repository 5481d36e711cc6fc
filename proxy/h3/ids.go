package h3

import (
	"crypto/rand"
	"fmt"
	"sync"

	"github.com/quic-go/quic-go"

	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/quicid"
)

// IDs makes the connection IDs of one worker, and reads those of the whole node:
// quic-go asks it whenever a connection needs one, for a Retry as well. To be used by
// pointer.
type IDs struct {
	// Owner is the node, the slot and the worker. With a ServerID of 0 the IDs
	// name nobody, and a connection is kept together by its addresses alone.
	Owner quicid.ID
	// Keys say how the owner is encrypted, as it is at each moment: IDs that were
	// given out before a rotation stay what they are. Nil: not at all.
	Keys *keys.Reader

	mu       sync.Mutex
	read     bool
	sequence uint64 // of the keys that known is made of, or could not be
	config   quicid.Config
	known    *quicid.Keys
	problem  error // why there are none
}

// ConnectionIDLen is the length of every ID.
func (*IDs) ConnectionIDLen() int { return quicid.Len }

// GenerateConnectionID makes the next ID. It fails where the keys were never to be
// read: a connection is refused rather than that an owner be shown which was to be
// hidden.
func (g *IDs) GenerateConnectionID() (quic.ConnectionID, error) {
	var id [quicid.Len]byte
	var random [quicid.Len - 1]byte
	rand.Read(random[:])
	if g.Owner.ServerID == 0 {
		quicid.EncodeUnroutable(&id, random)
		return quic.ConnectionIDFromBytes(id[:]), nil
	}
	known, config, err := g.current()
	if err != nil {
		return quic.ConnectionID{}, fmt.Errorf("connection ID: %w", err)
	}
	known.Encode(&id, config, g.Owner, [quicid.RandomLen]byte(random[:]))
	return quic.ConnectionIDFromBytes(id[:]), nil
}

// reader reads the IDs of the node as they are written now, and were before. It needs
// not be asked for again for the packets of one moment.
func (g *IDs) reader() *quicid.Keys {
	if known, _, err := g.current(); err == nil {
		return known
	}
	return readable
}

// readable is without keys.
var readable = new(quicid.Keys)

// current is how IDs are written now, and read.
func (g *IDs) current() (*quicid.Keys, quicid.Config, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Keys == nil {
		return readable, quicid.Readable, nil
	}
	// Once for each sequence, also where reading fails: whose writer has died in the
	// middle of a rotation has a page that stays as it is, and takes long to give up.
	if now := g.Keys.Sequence(); !g.read || now != g.sequence {
		err := g.rebuild()
		if err != nil {
			g.sequence = now
		}
		if g.known == nil {
			g.problem = err // else what was in force before is good enough: it can be read still
		}
		g.read = true
	}
	return g.known, g.config, g.problem
}

func (g *IDs) rebuild() error {
	ids, sequence, err := g.Keys.IDs()
	if err != nil {
		return err
	}
	all := map[quicid.Config]quicid.Key{}
	for i, key := range ids.Read {
		if key != (quicid.Key{}) {
			all[quicid.Config(i+1)] = key
		}
	}
	if ids.Config != quicid.Readable {
		all[ids.Config] = ids.Key
	}
	known, err := quicid.NewKeys(all)
	if err != nil {
		return err
	}
	g.known, g.config, g.sequence, g.problem = known, ids.Config, sequence, nil
	return nil
}
