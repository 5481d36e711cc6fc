package xdp

import (
	"maps"
	"net/netip"
	"testing"
)

// What a VIP and a real have got is counted once, in packets and octets, for each VIP
// apart; of what was left to this host the VIP knows the octets too. Dropped packets and
// those that pass have no octets.
func TestCounts(t *testing.T) {
	b := open(t)
	short, long := frame(vip4, isTCP, 443, tcp(syn)), frame(vip4, isTCP, 443, append(tcp(ack), make([]byte, 500)...))
	datagram := frame(vip4, isUDP, 443, udp([]byte("x")))
	var octets, own uint64
	for _, in := range [][]byte{short, long, long} {
		verdictOf(t, b, in)
		octets += uint64(len(in))
	}
	verdictOf(t, b, datagram)
	verdictOf(t, b, frame(vip4, isTCP, 80, tcp(syn))) // another port
	setLocal := func(local bool) {
		t.Helper()
		if err := b.SetReal(1, Real{Addr: netip.AddrFrom4([4]byte{10, 2, 0, 1}), MAC: mac1, Ifindex: loopback, Local: local}); err != nil {
			t.Fatal(err)
		}
	}
	setLocal(true)
	for _, in := range [][]byte{short, long} {
		verdictOf(t, b, in)
		own += uint64(len(in))
	}
	if err := b.SetReal(1, Real{Addr: netip.AddrFrom4([4]byte{10, 2, 0, 1}), MAC: mac1, Ifindex: loopback, Down: true}); err != nil {
		t.Fatal(err)
	}
	verdictOf(t, b, short) // nobody gets it
	setLocal(false)

	c, err := b.Counted()
	if err != nil {
		t.Fatal(err)
	}
	got := c.VIPs[VIP{vip4, 443, false}]
	maps.DeleteFunc(got.Reasons, func(_ string, n uint64) bool { return n == 0 })
	if want := map[string]uint64{"ring": 1, "table": 4, "local": 2, "no_real": 1}; !maps.Equal(got.Reasons, want) || got.Octets != octets+own || got.Local != own {
		t.Errorf("of TCP: %+v, want %v, %d octets, %d of them this host's", got, want, octets+own, own)
	}
	if got := c.VIPs[VIP{vip4, 443, true}]; got.Octets != uint64(len(datagram)) || got.Local != 0 || got.Reasons["ring"] != 1 {
		t.Errorf("of UDP: %+v", got)
	}
	if got := c.VIPs[VIP{vip6, 0, false}]; got.Octets != 0 {
		t.Errorf("of IPv6, which has got nothing: %+v", got)
	}
	if got, want := c.Reals[1], (RealCounts{Packets: 6, Octets: octets + own + uint64(len(datagram)), Flows: 2}); got != want {
		t.Errorf("of the real: %+v, want %+v", got, want)
	}
	if c.Others["other_port"] != 1 {
		t.Errorf("others: %v", c.Others)
	}
}
