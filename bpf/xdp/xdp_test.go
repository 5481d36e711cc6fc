package xdp

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
)

// What XDP is told (include/uapi/linux/bpf.h).
const (
	drop, pass, tx, redirect = 1, 2, 3, 4
)

var (
	ours   = [6]byte{2, 0, 0, 0, 0, 1} // of the interface
	router = [6]byte{2, 0, 0, 0, 0, 2}
	mac1   = [6]byte{2, 0, 0, 0, 1, 1} // of real 1
	mac2   = [6]byte{2, 0, 0, 0, 1, 2}
)

// The loopback interface is where the kernel runs a program on a made-up packet.
const loopback = 1

// open loads a balancer with two reals behind VIPs of both families, all flows to
// real 1 by the ring, and server 42 as real 2.
func open(t *testing.T) *Balancer { return openWith(t, Options{}) }

// openWith is open with options.
func openWith(t *testing.T, o Options) *Balancer {
	t.Helper()
	need.Root(t, "loading BPF programs")
	o.Dir = scratch.Pins(t)
	b := reopenWith(t, o)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.objs.Links.Put(uint32(loopback), xdpLink{Ifindex: loopback, Mac: ours}))
	for i, mac := range [][6]byte{mac1, mac2} {
		must(b.SetReal(uint32(i+1), Real{Addr: netip.AddrFrom4([4]byte{10, 2, 0, byte(i + 1)}), MAC: mac, Ifindex: loopback}))
	}
	must(b.SetServerID(42, 2))
	must(b.Keys().Set(1, key1))
	table := make([]uint32, b.ringSize)
	for i := range table {
		table[i] = 1
	}
	must(setRing(b, 3, table))
	must(b.SetVIP(VIP{vip4, 443, false}, VIPEntry{Ring: 3}))
	must(b.SetVIP(VIP{vip4, 443, true}, VIPEntry{Ring: 3, QUIC: true}))
	must(b.SetVIP(VIP{vip6, 0, false}, VIPEntry{Ring: 3}))
	return b
}

// setRing has a ring name these reals.
func setRing(b *Balancer, id uint32, reals []uint32) error {
	return b.SetRings([]uint32{id}, func(_ uint32, table []uint32) { copy(table, reals) })
}

func reopen(t *testing.T, dir string) *Balancer {
	t.Helper()
	return reopenWith(t, Options{Dir: dir})
}

func reopenWith(t *testing.T, o Options) *Balancer {
	t.Helper()
	o.RingSize = cmp.Or(o.RingSize, 251)
	b, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	b.sources[loopback] = source{seen: time.Now().Add(time.Hour)} // it has no address of its own
	return b
}

// Packet in, verdict and packet out, and what was counted.
func TestPackets(t *testing.T) {
	b := open(t)
	damaged := func(f []byte, at int, to byte) []byte { f[at] = to; return f }
	nops := bytes.Repeat([]byte{1}, 40)
	for _, test := range []packetCase{
		{"SYN by the ring", frame(vip4, isTCP, 443, tcp(syn)), 1, "ring"},
		{"its flow by the table", frame(vip4, isTCP, 443, tcp(ack)), 1, "table"},
		{"a SYN never by the option", frame(vip4, isTCP, 443, tcp(syn, optionOf(42)...)), 1, "table"},
		{"by the option", frame(vip4, isTCP, 443, tcp(ack, optionOf(42)...)), 2, "option"},
		{"by the option at the very end", frame(vip4, isTCP, 443, tcp(ack, append(nops[:34:34], optionOf(42)[2:]...)...)), 2, "option"},
		{"unknown id", frame(vip4, isTCP, 443, tcp(ack, optionOf(99)...)), 1, "table unknown_id"},
		{"40 octets of NOP", frame(vip4, isTCP, 443, tcp(ack, nops...)), 1, "table"},
		{"an option that lies about its length", frame(vip4, isTCP, 443, tcp(ack, 8, 200, 0xb7, 6, 0, 0, 0, 42)), 1, "table"},
		{"an option of length 0", frame(vip4, isTCP, 443, tcp(ack, 8, 0, 0xb7, 6, 0, 0, 0, 42)), 1, "table"},
		{"an option cut off", frame(vip4, isTCP, 443, tcp(ack, 1, 1, 1, 1, 1, 1, 0xb7, 6)), 1, "table"},
		{"QUIC by its ID", frame(vip4, isUDP, 443, short(42)), 2, "cid"},
		{"QUIC of an unknown server", frame(vip4, isUDP, 443, short(99)), 1, "ring unknown_id"},
		{"a Handshake by its ID", frame(vip4, isUDP, 443, long(0xe0, 1, 42)), 2, "cid"},
		{"a Handshake of version 2", frame(vip4, isUDP, 443, long(0xf0, 0x6b3343cf, 42)), 2, "cid"},
		{"an Initial that answers the server's", frame(vip4, isUDP, 443, long(0xc0, 1, 42)), 2, "cid"},
		{"an Initial of an unknown server", frame(vip4, isUDP, 443, long(0xc0, 1, 99)), 1, "table unknown_id"},
		{"an encrypted ID", frame(vip4, isUDP, 443, encrypted(42)), 2, "cid"},
		{"encrypted under a key that is not there", frame(vip4, isUDP, 443, damaged(encrypted(42), 5, 0x50)), 1, "table"},
		{"a datagram that lies about its length", frame(vip4, isUDP, 443, damaged(short(42), 1, 20)), 1, "table"},
		{"an unreachable port of a flow", frame(vip4, 1, 0, nil), 0, "malformed"},
		{"an ICMP error about a TCP flow", icmp4(3, about4(isTCP, 443, 40000)), 1, "icmp"},
		{"an ICMP error about a UDP flow", icmp4(11, about4(isUDP, 443, 40000)), 1, "icmp"},
		{"an ICMP error about another port", icmp4(3, about4(isTCP, 80, 40000)), 0, "other_port"},
		{"an ICMP error cut off", icmp4(3, about4(isTCP, 443, 40000)[:20]), 0, "malformed"},
		{"an ICMP echo", icmp4(8, about4(isTCP, 443, 40000)), 0, "other_protocol"},
		{"IP options", withIPOptions(frame(vip4, isTCP, 443, tcp(ack, optionOf(42)...))), 2, "option"},
		{"a datagram without any ID", frame(vip4, isUDP, 443, udp([]byte("x"))), 1, "table"},
		{"IPv6, any port", frame(vip6, isTCP, 8443, tcp(syn)), 1, "ring"},
		{"IPv6 by the option", frame(vip6, isTCP, 1, tcp(ack, optionOf(42)...)), 2, "option"},

		{"another port", frame(vip4, isTCP, 80, tcp(syn)), 0, "other_port"},
		{"another address", frame(netip.MustParseAddr("10.9.0.2"), isTCP, 443, tcp(syn)), 0, ""},
		{"IPv6, UDP", frame(vip6, isUDP, 443, udp(nil)), 0, "other_port"},
		{"IPv6, hop by hop", frame(vip6, 0, 443, tcp(syn)), 0, "other_protocol"},
		{"IPv6, a fragment", frame(vip6, 44, 443, tcp(syn)), 0, "fragment"},
		{"a fragment", damaged(frame(vip4, isTCP, 443, tcp(syn)), 14+6, 0x20), 0, "fragment"},
		{"a later fragment", damaged(frame(vip4, isTCP, 443, tcp(syn)), 14+7, 1), 0, "fragment"},
		{"a header shorter than any", damaged(frame(vip4, isTCP, 443, tcp(syn)), 14, 0x44), 0, "malformed"},
		{"a short TCP header", damaged(frame(vip4, isTCP, 443, tcp(syn)), 14+20+12, 0x40), 0, "malformed"},
		{"cut off in the TCP header", frame(vip4, isTCP, 443, tcp(syn))[:14+20+19], 0, "malformed"},
		{"cut off in the ports", frame(vip4, isTCP, 443, tcp(syn))[:14+20+3], 0, "malformed"},
		{"a VLAN", damaged(damaged(frame(vip4, isTCP, 443, tcp(syn)), 12, 0x81), 13, 0), 0, ""},
		{"two VLANs", damaged(damaged(frame(vip4, isTCP, 443, tcp(syn)), 12, 0x88), 13, 0xa8), 0, ""},
		{"a frame for another host", damaged(frame(vip4, isTCP, 443, tcp(syn)), 5, 9), 0, "other_host"},
	} {
		expect(t, b, test)
	}
}

// packetCase is a frame, and what is to become of it.
type packetCase struct {
	name    string
	in      []byte
	real    int // who gets it. 0: it passes unchanged
	counted string
}

// expect runs a frame and checks verdict, frame and counters, and that no other
// counter has moved.
func expect(t *testing.T, b *Balancer, test packetCase) {
	t.Helper()
	before := counted(t, b)
	verdict, out, err := b.objs.Balance.Test(test.in)
	if err != nil {
		t.Fatalf("%s: %v", test.name, err)
	}
	want, wantVerdict := bytes.Clone(test.in), uint32(pass)
	if test.real != 0 {
		wantVerdict = tx
		copy(want, [][6]byte{mac1, mac2}[test.real-1][:])
		copy(want[6:], make([]byte, 6)) // loopback's own address
	}
	if verdict != wantVerdict || !bytes.Equal(out[:len(want)], want) {
		t.Errorf("%s: verdict %d, want %d; out\n%x, want\n%x", test.name, verdict, wantVerdict, out, want)
	}
	var moved []string
	after := counted(t, b)
	for _, reason := range reasons {
		if n := after[reason] - before[reason]; n > 0 {
			moved = append(moved, reason)
			if n > 1 {
				t.Errorf("%s: %s was counted %d times", test.name, reason, n)
			}
		}
	}
	if got := fmt.Sprint(moved); got != "["+test.counted+"]" {
		t.Errorf("%s: counted %s, want [%s]", test.name, got, test.counted)
	}
}

// counted is all VIPs together.
func counted(t *testing.T, b *Balancer) map[string]uint64 {
	t.Helper()
	c, err := b.Counted()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]uint64{}
	for _, v := range c.VIPs {
		for reason, n := range v.Reasons {
			all[reason] += n
		}
	}
	for reason, n := range c.Others {
		all[reason] += n
	}
	return all
}

// verdictOf runs the program and returns what it says and who gets the packet.
func verdictOf(t *testing.T, b *Balancer, in []byte) (verdict uint32, to [6]byte) {
	t.Helper()
	verdict, out, err := b.objs.Balance.Test(in)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, [6]byte(out)
}

// A real that is down, has gone, or whose place another has, gets nothing that was its own.
func TestRealsThatGo(t *testing.T) {
	b := open(t)
	flow := frame(vip4, isTCP, 443, tcp(ack))
	byID := frame(vip4, isTCP, 443, tcp(ack, optionOf(42)...))
	second := Real{Addr: netip.MustParseAddr("10.2.0.2"), MAC: mac2, Ifindex: loopback}
	if _, to := verdictOf(t, b, byID); to != mac2 {
		t.Fatalf("an id leads to %x", to)
	}
	second.Down = true
	if err := b.SetReal(2, second); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, byID); to != mac1 {
		t.Errorf("the id of a real that is down leads to %x", to)
	}

	verdictOf(t, b, flow) // remembered: real 1
	ring := make([]uint32, 251)
	for i := range ring {
		ring[i] = 2
	}
	second.Down, second.Drained = false, true
	if err := b.SetReal(2, second); err != nil {
		t.Fatal(err)
	}
	if err := setRing(b, 3, ring); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, flow); to != mac1 {
		t.Errorf("a remembered flow goes to %x when the ring changes", to)
	}
	if err := b.DeleteReal(1); err != nil {
		t.Fatal(err)
	}
	if err := b.SetReal(1, Real{Addr: netip.MustParseAddr("10.2.0.9"), MAC: [6]byte{2, 9}, Ifindex: loopback}); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, flow); to != mac2 {
		t.Errorf("the flow of a real that has gone goes to %x, not by the ring", to)
	}
	second.Down = true
	if err := b.SetReal(2, second); err != nil {
		t.Fatal(err)
	}
	if verdict, _ := verdictOf(t, b, frame(vip4, isTCP, 443, tcp(syn))); verdict != drop {
		t.Errorf("where nobody is up the verdict is %d", verdict)
	}
	if err := b.SetReal(2, Real{Addr: second.Addr, Local: true, Ifindex: loopback}); err != nil {
		t.Fatal(err)
	}
	if verdict, to := verdictOf(t, b, frame(vip4, isTCP, 443, tcp(syn))); verdict != pass || to != ours {
		t.Errorf("for this host itself the verdict is %d, to %x", verdict, to)
	}
}

// The next process finds what this one has written.
func TestTablesAreReadBack(t *testing.T) {
	b := open(t)
	down := Real{Addr: netip.MustParseAddr("2001:db8::9"), MAC: mac2, Ifindex: loopback, Down: true, Drained: true}
	if err := b.SetReal(7, down); err != nil {
		t.Fatal(err)
	}
	held, err := reopen(t, b.dir[:len(b.dir)-len(layout)-1]).Held()
	if err != nil {
		t.Fatal(err)
	}
	if len(held.Reals) != 3 || held.Reals[7] != down || held.Reals[1].MAC != mac1 || held.ServerIDs[42] != 2 ||
		len(held.VIPs) != 3 || held.VIPs[VIP{vip4, 443, true}] != (VIPEntry{3, true, false}) || fmt.Sprint(held.Rings) != "[3]" {
		t.Errorf("%+v", held)
	}
	if err := b.DeleteRing(3); err != nil {
		t.Error(err)
	}
	for _, v := range []VIP{{vip4, 443, true}, {vip4, 443, false}, {vip6, 0, false}, {vip6, 0, false}} {
		if err := b.DeleteVIP(v); err != nil {
			t.Errorf("delete %v: %v", v, err)
		}
	}
	if held, err := b.Held(); err != nil || len(held.VIPs) != 0 || len(held.Rings) != 0 {
		t.Errorf("after everything was deleted: %+v, %v", held, err)
	}
}
