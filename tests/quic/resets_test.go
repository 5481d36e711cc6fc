package quic

import (
	"crypto/rand"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/tests/node"
)

// TestResetTimes measures how long a client of a generation that was killed waits
// for the stateless reset. BATON_RESETS is how many it measures.
func TestResetTimes(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("BATON_RESETS"))
	if n == 0 {
		t.Skip("measures: make quic")
	}
	s := startSite(t, siteSettings{})
	l := s.load(t)
	var took []time.Duration
	for range n {
		u, err := l.upload() // which keeps the connection busy when its generation drains
		if err != nil {
			t.Fatal(err)
		}
		s.release(t, "release")
		conn := u.last.Load()
		kill(t, s, u.generation)
		begin := time.Now()
		if err := u.send(); err != nil {
			t.Error(err)
		}
		select {
		case <-conn.Context().Done():
			took = append(took, time.Since(begin))
		case <-time.After(node.Enough):
			t.Error("the client hears nothing")
		}
		u.body.Close()
		<-u.answer
		u.close()
	}
	slices.Sort(took)
	t.Logf("%d resets: median %v, longest %v", len(took), took[len(took)/2], took[len(took)-1])
}

// TestMisroutedPackets has every packet of a client arrive where it belongs, and
// also at another node that was given the same number by mistake, and, as if its
// connection ID had been another, at other slots, workers and IDs of its own node.
// Some of those answer by stateless resets: none is the client's to believe.
func TestMisroutedPackets(t *testing.T) {
	s, other := startSite(t, siteSettings{}), startSite(t, siteSettings{})
	l := s.load(t)
	u, err := l.upload()
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	s.release(t, "release")
	sent, heard := u.relay.alsoTo(other.HTTPS.String())
	slot := byte(slotOf(t, s, "2"))
	strays := u.relay.mutate(func(packet []byte) [][]byte {
		if packet[0]&0x80 != 0 || len(packet) < 1+quicid.Len {
			return nil
		}
		var all [][]byte
		for at, to := range map[int]byte{ // octets of the ID, drawn in quicid
			1: 1,                                     // another node's number
			5: slot,                                  // the slot of the current generation
			6: packet[1+6] ^ 1,                       // the other worker
			7: packet[1+7] ^ 1, quicid.Len - 1: 0x5a, // no connection's
		} {
			stray := slices.Clone(packet)
			stray[1+at] = to
			all = append(all, stray)
		}
		return all
	})
	for range 50 {
		if err := u.send(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := u.finish(); err != nil {
		t.Error(err)
	}
	t.Logf("%d packets also went to another node, which answered %d times; %d strays", sent.Load(), heard.Load(), strays.Load())
	if heard.Load() == 0 || strays.Load() == 0 {
		t.Error("nobody has answered a misrouted packet: nothing was shown")
	}
}

// badPackets are what no client of QUIC would send, by what is wrong with each.
func badPackets(slots int) map[string][][]byte {
	random := func(n int) []byte {
		b := make([]byte, n)
		rand.Read(b)
		return b
	}
	long := func(version byte, id []byte, rest int) []byte {
		p := append([]byte{0xc3, 0, 0, 0, version, byte(len(id))}, id...)
		return append(append(p, 0), random(rest)...)
	}
	bad := map[string][][]byte{}
	add := func(what string, packet []byte) { bad[what] = append(bad[what], packet) }
	whole := long(1, random(8), 1200)
	for n := range 64 {
		add("truncated", whole[:n])
		add("garbage", random(n*23))
	}
	add("oversized", append(whole, random(60<<10)...))
	add("oversized", random(65507)) // as much as UDP over IPv4 can carry
	for n := range 21 {
		for _, size := range []int{0, 40, 1200} {
			add("an ID of any length", long(1, random(n), size))
			add("an ID of any length", append(append([]byte{0x43}, random(n)...), random(size)...))
		}
	}
	for n := 21; n < 256; n += 13 {
		add("an ID longer than there can be", append([]byte{0xc3, 0, 0, 0, 1, byte(n)}, random(1200)...))
	}
	for _, version := range []byte{0, 2, 0xff} {
		add("another version", long(version, random(8), 1200))
	}
	add("coalesced", append(slices.Clone(whole), whole...))
	add("coalesced", append(append(long(1, random(8), 30), 0x43), random(1200)...))
	for slot := range slots {
		for _, worker := range []uint8{0, 1, 63, 255} {
			var id [quicid.Len]byte
			quicid.Encode(&id, quicid.ID{ServerID: 77, Slot: uint8(slot), Worker: worker}, [quicid.RandomLen]byte(random(quicid.RandomLen)))
			add("a forged ID", append(append([]byte{0x43}, id[:]...), random(60)...))
			add("a forged ID", long(1, id[:], 1200))
		}
	}
	return bad
}

// TestBadInput sends what no client would, to a generation that drains and one
// that serves: it is counted, nobody dies of it, and clients notice nothing.
func TestBadInput(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	u, err := l.upload()
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	s.release(t, "release")
	l.fresh()
	l.kept()
	l.datagrams()
	before, pids := s.runs(t), s.pids(t)
	c, err := net.Dial("udp", s.HTTPS.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := 0
	for what, packets := range badPackets(256) {
		for _, p := range packets {
			if _, err := c.Write(p); err != nil {
				t.Errorf("%s: %v", what, err) // also an ICMP error for an earlier one
			}
			sent++
		}
		if err := u.send(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := u.finish(); err != nil {
		t.Error(err)
	}
	l.wantNoneFailed()
	if counted := s.runs(t) - before; counted < sent {
		t.Errorf("%d of %d were counted", counted, sent)
	}
	if now := s.pids(t); !slices.Contains(now, pids[len(pids)-1]) || len(now) > len(pids) {
		t.Errorf("the generations were processes %v and are %v", pids, now)
	}
	t.Logf("%d datagrams", sent)
}

// runs is how often the kernel has chosen a socket for anything.
func (s *site) runs(t *testing.T) (sum int) {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range status.Slots {
		for _, n := range slot.Reasons {
			sum += n
		}
	}
	return sum
}

// pids are the processes of the generations, the oldest first.
func (s *site) pids(t *testing.T) (all []int) {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range status.Generations {
		all = append(all, g.PID)
	}
	return all
}

// TestDatagramsOfAnySize: to a listener of UDP none is bad.
func TestDatagramsOfAnySize(t *testing.T) {
	s := startSite(t, siteSettings{})
	c, err := net.Dial("udp", s.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, 64<<10)
	for _, size := range []int{0, 1, 1472, 1473, 9000, 65507} {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(got); err != nil || n != size {
			t.Errorf("of %d octets: %d came back, %v", size, n, err)
		}
	}
}
