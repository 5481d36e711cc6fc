package proxy_test

import (
	"maps"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/quicid"
)

// datagramLedger is a ledger with a listener that takes datagrams.
func datagramLedger(t *testing.T) (*ledger.Ledger, *ledger.Writer) {
	t.Helper()
	l, err := ledger.Create(ledger.Options{Generation: 7, Listeners: []string{"web", "web.udp"}, Routes: []string{"web"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w, err := ledger.Open(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	return l, w
}

func TestFlowsOfDatagramsAreCountedOnce(t *testing.T) {
	echo := serveUDP(t, func(_, word string) string { return word })
	l, w := datagramLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger = w }, echo, "", datagrams)
	for range 3 {
		c := dialUDP(t, n.udp)
		ask(t, c, "one")
		ask(t, c, "two")
	}
	totals(t, l, 0, 3, ledger.Flows{Accepted: 3})
	n.term()
	n.lastCall()
	n.drained(listener.Tally{Cut: 3})
	r := totals(t, l, 3, 0, ledger.Flows{Accepted: 3, Closed: 3})
	want(t, classes(r), map[string]uint64{"udp web ended": 3})
	if at := r.Listeners[1]; at.Name != "web.udp" || at.Flows.Accepted != 3 || r.Cut != 3 {
		t.Errorf("%+v, %d cut", at, r.Cut)
	}
}

func TestFlowOfDatagramsWithoutUpstream(t *testing.T) {
	l, w := datagramLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger = w }, "no address", "", datagrams)
	dialUDP(t, n.udp).Write([]byte("word"))
	r := totals(t, l, 1, 0, ledger.Flows{Accepted: 1, Closed: 1, Failed: 1})
	want(t, classes(r), map[string]uint64{"udp web failed": 1})
}

// A packet that names another slot of the node, or another worker of the generation,
// is counted, under whatever key; what names itself, nobody or another node is not its
// concern.
func TestStrayPackets(t *testing.T) {
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	shared, err := keys.Open(page.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	known := map[quicid.Config]quicid.Key{2: {2}, 6: {6}}
	writer, err := quicid.NewKeys(known)
	if err != nil {
		t.Fatal(err)
	}
	l, w := datagramLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger, o.ServerID, o.Slot, o.Keys = w, 77, 3, shared }, "127.0.0.1:1", "", quicToo)
	c, err := net.Dial("udp", n.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(config quicid.Config, owner quicid.ID, long bool) {
		var id [quicid.Len]byte
		writer.Encode(&id, config, owner, [quicid.RandomLen]byte{1, 2, 3})
		head := []byte{0x43}
		if long {
			head = []byte{0xe3, 0, 0, 0, 1, quicid.Len}
		}
		if _, err := c.Write(append(slices.Concat(head, id[:]), make([]byte, 1200)...)); err != nil {
			t.Fatal(err)
		}
	}
	sendAll := func(config quicid.Config) {
		for range 2 {
			for _, long := range []bool{false, true} {
				send(config, quicid.ID{ServerID: 77, Slot: 3}, long)
				send(config, quicid.ID{ServerID: 78, Slot: 5}, long)
				send(config, quicid.ID{ServerID: 77, Slot: 4, Worker: 0}, long)
				send(config, quicid.ID{ServerID: 77, Slot: 3, Worker: 1}, long)
			}
		}
	}
	wait := func(what string, each uint64) {
		t.Helper()
		var r ledger.Reading
		wanted := map[uint8]uint64{3: each, 4: each}
		if !within(time.Minute, func() bool {
			r = l.Read()
			return maps.Equal(r.Strays, wanted)
		}) {
			t.Fatalf("%s: %v by slot, want %v", what, r.Strays, wanted)
		}
		if r.Damage != "" {
			t.Error(r.Damage)
		}
	}
	for size := range 60 { // too short, or with something else where an ID would be
		c.Write(make([]byte, size))
	}
	sendAll(2) // without its key it is nobody's
	sendAll(quicid.Readable)
	wait("the readable strays", 4)
	page.WriteIDs(keys.IDs{Config: 2, Key: known[2], Read: [6]quicid.Key{1: known[2], 5: known[6]}})
	sendAll(2)
	sendAll(6) // of a rotation before
	wait("the encrypted strays", 12)
	page.WriteIDs(keys.IDs{Config: 2, Key: known[2]}) // as a supervisor of before does
	sendAll(6)
	sendAll(2)
	wait("those under the key that is written under", 16)
}
