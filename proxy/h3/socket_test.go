package h3

import (
	"testing"

	"github.com/baton-mesh/baton/quicid"
)

// BenchmarkLook is what it costs to see whose a packet is.
func BenchmarkLook(b *testing.B) {
	own := quicid.ID{ServerID: 77, Slot: 3}
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: {1}})
	if err != nil {
		b.Fatal(err)
	}
	w := watched{ids: &IDs{Owner: own}}
	for name, config := range map[string]quicid.Config{"readable": quicid.Readable, "encrypted": 1} {
		b.Run(name, func(b *testing.B) {
			var id [quicid.Len]byte
			keys.Encode(&id, config, own, [quicid.RandomLen]byte{})
			packet := append(append([]byte{0x43}, id[:]...), make([]byte, 40)...)
			for b.Loop() {
				w.look(keys, packet)
			}
		})
	}
}
