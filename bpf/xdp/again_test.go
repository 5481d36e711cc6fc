package xdp

import (
	"net/netip"
	"testing"
)

// A SYN that is sent again goes where the first one went, whatever the ring says
// by then, unless its real drains.
func TestSYNAgain(t *testing.T) {
	b := open(t)
	first := frame(vip4, isTCP, 443, tcp(syn))
	if _, to := verdictOf(t, b, first); to != mac1 {
		t.Fatalf("the first goes to %x", to)
	}
	ring := make([]uint32, 251)
	for i := range ring {
		ring[i] = 2
	}
	if err := setRing(b, 3, ring); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, fromPort(40001, frame(vip4, isTCP, 443, tcp(syn)))); to != mac2 {
		t.Errorf("another connection's goes to %x after the ring has changed", to)
	}
	if _, to := verdictOf(t, b, first); to != mac1 {
		t.Errorf("sent again, it goes to %x", to)
	}
	if err := b.SetReal(1, Real{Addr: netip.MustParseAddr("10.2.0.1"), MAC: mac1, Ifindex: loopback, Drained: true}); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, first); to != mac2 {
		t.Errorf("sent again to a real that drains, it goes to %x", to)
	}
}

// A place that is given to another address without having been empty in between
// does not inherit the flows of the one before; one that keeps it keeps them.
func TestPlaceOfAnotherAddress(t *testing.T) {
	b := open(t)
	flow := frame(vip4, isTCP, 443, tcp(ack))
	if _, to := verdictOf(t, b, flow); to != mac1 {
		t.Fatalf("the flow begins at %x", to)
	}
	ring := make([]uint32, 251)
	for i := range ring {
		ring[i] = 2
	}
	if err := setRing(b, 3, ring); err != nil {
		t.Fatal(err)
	}
	other := [6]byte{2, 9}
	if err := b.SetReal(1, Real{Addr: netip.MustParseAddr("10.2.0.1"), MAC: other, Ifindex: loopback}); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, flow); to != other {
		t.Errorf("with another MAC address of its real it goes to %x", to)
	}
	if err := b.SetReal(1, Real{Addr: netip.MustParseAddr("10.2.0.9"), MAC: other, Ifindex: loopback}); err != nil {
		t.Fatal(err)
	}
	if _, to := verdictOf(t, b, flow); to != mac2 {
		t.Errorf("with another node at its place it goes to %x, not by the ring", to)
	}
}
