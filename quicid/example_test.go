package quicid_test

import (
	"crypto/rand"
	"fmt"

	"github.com/baton-mesh/baton/quicid"
)

func Example() {
	var random [quicid.RandomLen]byte
	rand.Read(random[:])

	var cid [quicid.Len]byte
	quicid.Encode(&cid, quicid.ID{ServerID: 42, Slot: 7, Worker: 1}, random)

	owner, ok := quicid.Decode(cid[:])
	fmt.Printf("%x %+v %t\n", cid[:7], owner, ok)
	// Output: 100000002a0701 {ServerID:42 Slot:7 Worker:1} true
}
