package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The option is found at whatever offset it stands, behind whatever stands before
// it, and not where the header ends before it does.
func TestOptionAtEveryOffset(t *testing.T) {
	b := open(t)
	expect(t, b, packetCase{"the flow", frame(vip4, isTCP, 443, tcp(syn)), 1, "ring"})
	option := optionOf(42)[2:]
	for offset := range 40 {
		fillers := map[string][]byte{"NOP": bytes.Repeat([]byte{1}, offset)}
		if offset >= 2 { // one option of another kind
			fillers["other"] = append([]byte{253, byte(offset)}, make([]byte, offset-2)...)
		}
		if offset >= 14 {
			fillers["timestamps"] = append(bytes.Clone(timestamps), append([]byte{253, byte(offset - 12)}, make([]byte, offset-14)...)...)
		}
		for name, filler := range fillers {
			o := append(bytes.Clone(filler), option...)
			real, counted := 2, "option"
			if len(o) > 40 {
				o, real, counted = o[:40], 1, "table"
			}
			for _, ip := range []func([]byte) []byte{bytes.Clone, withIPOptions} {
				expect(t, b, packetCase{fmt.Sprint(name, " to offset ", offset), ip(frame(vip4, isTCP, 443, tcp(ack, o...))), real, counted})
			}
			// A header that ends with the octet before the option's last.
			if end := (offset + 5) / 4 * 4; end < offset+6 && end <= 40 {
				f := frame(vip4, isTCP, 443, tcp(ack, o...))
				f[14+20+12] = byte((20+end)/4) << 4
				expect(t, b, packetCase{fmt.Sprint(name, " to offset ", offset, ", cut off"), f, 1, "table"})
			}
		}
	}
}

// Every length that an option may claim ends the walk or goes on, and never leads
// to another real than the option's or the table's.
func TestOptionsThatLie(t *testing.T) {
	b := open(t)
	expect(t, b, packetCase{"the flow", frame(vip4, isTCP, 443, tcp(syn)), 1, "ring"})
	for length := range 256 {
		if length > 44 && length < 250 && length%32 > 1 {
			continue
		}
		for _, room := range []int{8, 12, 28, 40} {
			o := make([]byte, room) // zeros, which end the list
			o[0], o[1] = 253, byte(length)
			copy(o[room-6:], optionOf(42)[2:])
			real, counted := 1, "table"
			if length >= 2 && length == room-6 {
				real, counted = 2, "option"
			}
			expect(t, b, packetCase{fmt.Sprint("length ", length, " of ", room), frame(vip4, isTCP, 443, tcp(ack, o...)), real, counted})
		}
	}
}

// A datagram's own word of its length, and what is there, have to have room for an ID.
func TestLengthsOfDatagrams(t *testing.T) {
	b := open(t)
	expect(t, b, packetCase{"the flow", frame(vip4, isUDP, 443, udp([]byte("x"))), 1, "ring"})
	whole := frame(vip4, isUDP, 443, short(42)) // 42 octets of headers, 1 + 17 + 24
	for claimed := range 60 {
		f := bytes.Clone(whole)
		binary.BigEndian.PutUint16(f[14+20+4:], uint16(claimed))
		real, counted := 1, "table"
		if claimed >= 8+26 {
			real, counted = 2, "cid"
		}
		expect(t, b, packetCase{fmt.Sprint("claims ", claimed), f, real, counted})
	}
	for n := 14; n < len(whole); n++ {
		real, counted := 2, "cid"
		switch {
		case n < 14+20:
			real, counted = 0, ""
		case n < 14+20+8:
			real, counted = 0, "malformed"
		case n < 14+20+8+26:
			real, counted = 1, "table"
		}
		expect(t, b, packetCase{fmt.Sprint("cut off at ", n), whole[:n], real, counted})
	}
}

// Frames in several buffers are sent whole and counted whole.
func TestJumboFrames(t *testing.T) {
	b := open(t)
	for _, n := range []int{1500, 3000, 4096, 9000} {
		for name, in := range map[string][]byte{
			"TCP":  frame(vip4, isTCP, 443, append(tcp(ack, optionOf(42)...), bytes.Repeat([]byte{0xa5}, n)...)),
			"IPv6": frame(vip6, isTCP, 443, append(tcp(ack, optionOf(42)...), bytes.Repeat([]byte{0xa5}, n)...)),
		} {
			before := octetsOf(t, b, 2)
			expect(t, b, packetCase{fmt.Sprint(name, " with ", n), in, 2, "option"})
			if got := octetsOf(t, b, 2) - before; got != uint64(len(in)) {
				t.Errorf("%s with %d: %d octets were counted of %d", name, n, got, len(in))
			}
		}
	}
}

func octetsOf(t *testing.T, b *Balancer, real uint32) uint64 {
	t.Helper()
	c, err := b.Counted()
	if err != nil {
		t.Fatal(err)
	}
	return c.Reals[real].Octets
}

// ICMP errors of IPv6, and those that lie about what they are about.
func TestErrorsOfIPv6(t *testing.T) {
	b := open(t)
	about := func(proto byte, from, to netip.Addr) []byte {
		h := make([]byte, 40)
		h[0], h[6] = 0x60, proto
		copy(h[8:], from.AsSlice())
		copy(h[24:], to.AsSlice())
		h = binary.BigEndian.AppendUint16(h, 443)
		return append(binary.BigEndian.AppendUint16(h, 40000), 0, 0, 0, 0)
	}
	icmp := func(kind byte, about []byte) []byte {
		f := frame(vip6, 58, 0, nil)[:14+40]
		return append(append(f, kind, 0, 0, 0, 0, 0, 0, 0), about...)
	}
	expect(t, b, packetCase{"the flow", frame(vip6, isTCP, 443, tcp(ack, optionOf(99)...)), 1, "ring unknown_id"})
	for kind := range byte(6) {
		real, counted := 1, "icmp"
		if kind == 0 || kind == 5 {
			real, counted = 0, "other_protocol"
		}
		expect(t, b, packetCase{fmt.Sprint("type ", kind), icmp(kind, about(isTCP, vip6, client6)), real, counted})
	}
	for _, test := range []packetCase{
		{"about a packet from elsewhere", icmp(2, about(isTCP, client6, vip6)), 0, "other_protocol"},
		{"about a fragment", icmp(2, about(44, vip6, client6)), 0, "fragment"},
		{"about an error", icmp(1, about(58, vip6, client6)), 0, "other_protocol"},
		{"about UDP, which has no VIP here", icmp(1, about(isUDP, vip6, client6)), 0, "other_port"},
		{"without ports", icmp(1, about(isTCP, vip6, client6)[:47]), 0, "malformed"},
		{"without a header", icmp(1, about(isTCP, vip6, client6)[:39]), 0, "malformed"},
		{"about IPv4", icmp(1, about4(isTCP, 443, 40000)), 0, "malformed"},
		{"a neighbour solicitation", icmp(135, about(isTCP, vip6, client6)), 0, "other_protocol"},
	} {
		expect(t, b, test)
	}
}

// onOneCPU keeps the test's runs on one CPU: the guard counts on each for itself.
func onOneCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	for i := range 1024 {
		if cpus.IsSet(i) {
			cpus.Zero()
			cpus.Set(i)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
}

// Beyond what a CPU may learn in a second new flows go by the ring alone; those
// that were learned before stay in the table.
func TestFloodOfNewFlows(t *testing.T) {
	onOneCPU(t)
	b := openWith(t, Options{NewFlowsPerCPU: 1})
	flow := func(port uint16) []byte { return fromPort(port, frame(vip4, isTCP, 443, tcp(ack))) }
	expect(t, b, packetCase{"the first flow", flow(1), 1, "ring"})
	before := counted(t, b)
	const flood = 200
	for i := range flood {
		if verdict, to := verdictOf(t, b, flow(uint16(1000+i))); verdict != tx || to != mac1 {
			t.Fatalf("flow %d: verdict %d, to %x", i, verdict, to)
		}
	}
	after := counted(t, b)
	// Not all of them: a slow machine takes several seconds, and each may learn one.
	if n := after["unlearned"] - before["unlearned"]; n == 0 || n > flood {
		t.Errorf("of %d flows %d were not learned", flood, n)
	}
	if n := after["ring"] - before["ring"]; n != flood {
		t.Errorf("of %d flows %d went by the ring", flood, n)
	}
	expect(t, b, packetCase{"the first flow again", flow(1), 1, "table"})
}

// A flow of datagrams that is silent for as long as is set is forgotten.
func TestSilentDatagrams(t *testing.T) {
	for _, test := range []struct {
		idle time.Duration
		real int
		by   string
	}{{time.Nanosecond, 2, "ring"}, {time.Hour, 1, "table"}} {
		b := openWith(t, Options{UDPIdle: test.idle})
		in := frame(vip4, isUDP, 443, udp([]byte("x")))
		expect(t, b, packetCase{"the first", in, 1, "ring"})
		table := make([]uint32, 251)
		for i := range table {
			table[i] = 2
		}
		if err := setRing(b, 3, table); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // several ticks of the clock that is read
		expect(t, b, packetCase{fmt.Sprint("after ", test.idle), in, test.real, test.by})
	}
}

// Fleets that do not convert to network order write the option as the host has it.
func TestHostOrder(t *testing.T) {
	b := openWith(t, Options{HostOrder: true})
	o := binary.LittleEndian.AppendUint32([]byte{1, 1, 0xb7, 6}, 42)
	expect(t, b, packetCase{"host order", frame(vip4, isTCP, 443, tcp(ack, o...)), 2, "option"})
	expect(t, b, packetCase{"network order", frame(vip4, isTCP, 443, tcp(ack, optionOf(42)...)), 1, "ring unknown_id"})
}
