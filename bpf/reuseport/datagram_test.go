package reuseport

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/quicid"
)

// A connection stays with the slot and worker that its ID names, whatever the
// shift, the type of the packet and the client's address.
func TestNamedPacketsStay(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2, 3)
	for _, current := range []uint8{1, 2} {
		l.shift(current)
		for slot := uint8(1); slot <= 3; slot++ {
			for worker := range workersOfLab {
				id := cid(quicid.ID{ServerID: nodeID, Slot: slot, Worker: uint8(worker)})
				for _, p := range [][]byte{short(id), initial(id), append([]byte{0x83}, initial(id)[1:]...)} {
					if got := l.send(l.client(), p); got != (place{int(slot), worker}) {
						t.Errorf("current %d: a packet of slot %d, worker %d arrived at %v", current, slot, worker, got)
					}
				}
			}
		}
	}
	if n := l.counted(3, Named); n != 2*workersOfLab*3 {
		t.Errorf("%d named, want %d", n, 2*workersOfLab*3)
	}
}

func TestEncryptedIDsAreRead(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	key := quicid.Key{1, 2, 3}
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{5: key})
	if err != nil {
		t.Fatal(err)
	}
	var id [quicid.Len]byte
	keys.Encode(&id, 5, quicid.ID{ServerID: nodeID, Slot: 2, Worker: 1}, [quicid.RandomLen]byte{9})
	if got := l.send(l.client(), short(id[:])); got != inSink {
		t.Errorf("without the key at %v", got)
	}
	if err := l.keys.Set(5, key); err != nil {
		t.Fatal(err)
	}
	if got := l.send(l.client(), short(id[:])); got != (place{2, 1}) {
		t.Errorf("with the key at %v", got)
	}
}

// The second datagram of a first flight goes where the first went, though the
// shift has moved in between; so does one that is sent again from elsewhere.
func TestFirstFlightIsRemembered(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	for range 20 {
		l.shift(1)
		first := initial(randomID(8 + rand.IntN(13)))
		c := l.client()
		at := l.send(c, first)
		if at.slot != 1 {
			t.Fatalf("a new connection at %v", at)
		}
		l.shift(2)
		for _, from := range []net.Conn{c, l.client()} {
			if got := l.send(from, first); got != at {
				t.Errorf("remembered at %v, the next one at %v", at, got)
			}
		}
		if got := l.send(c, initial(randomID(8))); got.slot != 2 {
			t.Errorf("another connection of the same client at %v", got)
		}
	}
	if l.counted(1, Remembered) != 40 {
		t.Errorf("%d remembered, want 40", l.counted(1, Remembered))
	}
}

// Of a dead slot the current one hears. One that lives is never replaced.
func TestDeadAndLivingSlots(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	id := short(cid(quicid.ID{ServerID: nodeID, Slot: 2, Worker: 1}))
	c := l.client()
	l.kill(2)
	if got := l.send(c, id); got != inSink {
		t.Errorf("a slot that lives, without sockets: at %v", got)
	}
	if err := l.node.EmptyDatagrams(2); err != nil {
		t.Fatal(err)
	}
	if got := l.send(c, id); got.slot != 1 {
		t.Errorf("a dead slot: at %v", got)
	}
	if l.counted(1, Reset) != 1 || l.counted(NoSlot, Stranger) != 1 {
		t.Errorf("%d resets, %d strangers", l.counted(1, Reset), l.counted(NoSlot, Stranger))
	}
	// The same for a worker that the slot never had.
	if got := l.send(c, short(cid(quicid.ID{ServerID: nodeID, Slot: 1, Worker: 9}))); got != inSink {
		t.Errorf("a worker that is not there: at %v", got)
	}
}

// A listener that the current slot does not have: the other one hears of the dead.
func TestTheOtherSlotTellsOfTheDead(t *testing.T) {
	l := newDatagramLab(t, 0, 1)
	id := short(cid(quicid.ID{ServerID: nodeID, Slot: 3}))
	l.node.SetShift(All, Shift{Current: 2, Other: 1, Salt: 7})
	if got := l.send(l.client(), id); got.slot != 1 || l.counted(1, Reset) != 1 {
		t.Errorf("at %v", got)
	}
	l.node.SetShift(All, Shift{Current: 2, Other: 2, Salt: 7})
	if got := l.send(l.client(), id); got != inSink || l.counted(NoSlot, Sink) != 1 {
		t.Errorf("nobody has the listener: at %v", got)
	}
}

// Without a sink the listener is closed: new flows are refused, those of a slot
// that lives go on.
func TestClosedListenerOfDatagrams(t *testing.T) {
	l := newDatagramLab(t, 0, 1)
	l.node.SetShift(All, Shift{Current: 2, Other: 2, Salt: 7})
	if err := l.node.ClearSink(l.group.Number()); err != nil {
		t.Fatal(err)
	}
	c := l.client()
	if _, err := c.Write(initial(randomID(8))); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new flow: %v", err)
	}
	if got := l.send(c, short(cid(quicid.ID{ServerID: nodeID, Slot: 1}))); got.slot != 1 {
		t.Errorf("an old one: at %v", got)
	}
	if n := l.counted(NoSlot, Lost); n != 1 {
		t.Errorf("%d are lost, want 1", n)
	}
}

// Packets that are nobody's reach nobody, and the sender hears nothing.
func TestStrangersAreNotAnswered(t *testing.T) {
	l := newDatagramLab(t, 0, 1)
	c := l.client()
	for name, p := range map[string][]byte{
		"another node's":    short(cid(quicid.ID{ServerID: nodeID + 1, Slot: 1})),
		"random":            short(randomID(17)),
		"not routable":      short(append([]byte{0xf0}, randomID(16)...)),
		"short for a CID":   {0x40, 1, 2, 3},
		"one octet":         {0x40},
		"long and cut":      initial(randomID(20))[:20],
		"an ID of 21":       append(initial(nil)[:5], append([]byte{21}, make([]byte, 60)...)...),
		"an ID of 255":      append(initial(nil)[:5], append([]byte{255}, make([]byte, 60)...)...),
		"encrypted, no key": short(append([]byte{0x30}, randomID(16)...)),
	} {
		if got := l.send(c, p); got != inSink {
			t.Errorf("%s: at %v", name, got)
		}
	}
	// An ICMP error would show at the next use of a connected socket.
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("the sender heard %v", err)
	}
	// A long header that names another node begins a connection like any other.
	if got := l.send(c, initial(cid(quicid.ID{ServerID: nodeID + 1, Slot: 7}))); got.slot != 1 {
		t.Errorf("a first ID that looks like another node's: at %v", got)
	}
}

// No ID that a client draws brings it to a slot that drains.
// BATON_TEST_DCIDS=1000000 draws as many.
func TestRandomIDsAvoidDrainingSlots(t *testing.T) {
	draws := 5000
	if n, err := strconv.Atoi(os.Getenv("BATON_TEST_DCIDS")); err == nil {
		draws = n
	}
	l := newDatagramLab(t, 0, 1, 2, 3)
	l.shift(2)
	c := l.client()
	for i := range draws {
		p := initial(randomID(8 + i%13))
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		if i%64 == 63 {
			l.discard()
		}
	}
	if n := l.counted(2, Current); n != uint64(draws) {
		t.Errorf("%d of %d at the current slot", n, draws)
	}
}

// A flow of UDP stays where it began until it is silent.
func TestFlowsOfAddresses(t *testing.T) {
	l := newDatagramLab(t, time.Minute, 1, 2)
	c := l.client()
	at := l.send(c, []byte("one"))
	if at.slot != 1 {
		t.Fatalf("a new flow at %v", at)
	}
	l.shift(2)
	if got := l.send(c, []byte("again")); got != at {
		t.Fatalf("at %v, then at %v", at, got)
	}
	if got := l.send(l.client(), []byte("other")); got.slot != 2 {
		t.Errorf("another flow at %v", got)
	}
	if err := l.group.Remember(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the clock that is looked at moves by jiffies
	if got := l.send(c, []byte("late")); got.slot != 2 {
		t.Errorf("after its silence at %v", got)
	}
	if n := l.counted(1, Remembered); n != 1 {
		t.Errorf("%d packets were remembered, want 1", n)
	}
	// With the slot it goes at once.
	if err := l.group.Remember(time.Minute); err != nil {
		t.Fatal(err)
	}
	l.shift(1)
	l.kill(2)
	if err := l.node.EmptyDatagrams(2); err != nil {
		t.Fatal(err)
	}
	if got := l.send(c, []byte("orphan")); got.slot != 1 {
		t.Errorf("after the death of its slot at %v", got)
	}
}

// Every octet of an ID tells connections apart, and so does its length.
func TestFirstIDsThatAreAlike(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	id := append(randomID(8), 5, 0)
	l.shift(1)
	l.send(l.client(), initial(id[:9]))
	l.shift(2)
	for name, other := range map[string][]byte{
		"shorter":             id[:8],
		"longer by a zero":    id,
		"another last octet":  append(id[:8:8], 6),
		"another first octet": append([]byte{id[0] + 1}, id[1:9]...),
	} {
		if got := l.send(l.client(), initial(other)); got.slot != 2 {
			t.Errorf("%s: at %v", name, got)
		}
	}
}

func TestProbesOfDatagrams(t *testing.T) {
	for name, p := range map[string]struct {
		forget   time.Duration
		datagram []byte
	}{"QUIC": {0, initial(randomID(8))}, "UDP": {time.Minute, []byte("word")}} {
		t.Run(name, func(t *testing.T) {
			l := newDatagramLab(t, p.forget, 1, 2)
			c := l.client()
			from := c.LocalAddr().(*net.UDPAddr).AddrPort()
			if err := l.node.Steer(from, 2); err != nil {
				t.Fatal(err)
			}
			if got := l.send(c, p.datagram); got.slot != 2 || l.counted(2, Probe) != 1 {
				t.Errorf("the probe is at %v", got)
			}
			if got := l.send(l.client(), append(p.datagram[:len(p.datagram):len(p.datagram)], 1)); name == "UDP" && got.slot != 1 {
				t.Errorf("another client's is at %v", got)
			}
		})
	}
}

// Nobody serves: datagrams go to the sink, which is silent.
func TestNobodyTakesDatagrams(t *testing.T) {
	for _, forget := range []time.Duration{0, time.Minute} {
		l := newDatagramLab(t, forget)
		if got := l.send(l.client(), initial(randomID(8))); got != inSink {
			t.Errorf("at %v", got)
		}
	}
}

// The ramp gives a connection to one of the two, and the whole first flight with it.
func TestRampOfDatagrams(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	l.node.SetShift(All, Shift{Current: 1, Other: 2, Weight: 1 << 15, Salt: 11})
	got := map[int]int{}
	for range 400 {
		c, p := l.client(), initial(randomID(8))
		at := l.send(c, p)
		if again := l.send(c, p); again != at {
			t.Fatalf("at %v, then at %v", at, again)
		}
		got[at.slot]++
		c.Close()
	}
	if got[1] < 120 || got[2] < 120 { // 200 each; 8 sigma
		t.Errorf("%v", got)
	}
	if l.counted(2, Ramped) != uint64(got[2]) {
		t.Errorf("%d ramped, %d arrived", l.counted(2, Ramped), got[2])
	}
}

// The two kinds of sockets of a slot are emptied apart.
func TestEmptyLeavesDatagrams(t *testing.T) {
	l := newDatagramLab(t, 0, 1, 2)
	if err := l.node.Empty(2); err != nil {
		t.Fatal(err)
	}
	id := short(cid(quicid.ID{ServerID: nodeID, Slot: 2}))
	if got := l.send(l.client(), id); got != (place{2, 0}) {
		t.Errorf("at %v", got)
	}
}
