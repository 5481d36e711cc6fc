package proxy_test

import (
	"maps"
	"net"
	"slices"
	"testing"

	"github.com/baton-mesh/baton/proxy"
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
// is counted; what names itself, nobody or another node is not its concern.
func TestStrayPackets(t *testing.T) {
	l, w := datagramLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger, o.ServerID, o.Slot = w, 77, 3 }, "127.0.0.1:1", "", quicToo)
	c, err := net.Dial("udp", n.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func(owner quicid.ID, long bool) {
		var id [quicid.Len]byte
		quicid.Encode(&id, owner, [quicid.RandomLen]byte{1, 2, 3})
		head := []byte{0x43}
		if long {
			head = []byte{0xe3, 0, 0, 0, 1, quicid.Len}
		}
		if _, err := c.Write(append(slices.Concat(head, id[:]), make([]byte, 1200)...)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for _, long := range []bool{false, true} {
			send(quicid.ID{ServerID: 77, Slot: 3}, long)
			send(quicid.ID{ServerID: 78, Slot: 5}, long)
			send(quicid.ID{ServerID: 77, Slot: 4, Worker: 0}, long)
			send(quicid.ID{ServerID: 77, Slot: 3, Worker: 1}, long)
		}
	}
	for size := range 60 { // too short, or with something else where an ID would be
		c.Write(make([]byte, size))
	}
	want := map[uint8]uint64{3: 4, 4: 4}
	var r ledger.Reading
	eventually(t, "the strays", func() bool {
		r = l.Read()
		return maps.Equal(r.Strays, want)
	})
	if r.Damage != "" {
		t.Error(r.Damage)
	}
}
