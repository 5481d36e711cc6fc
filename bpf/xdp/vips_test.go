package xdp

import (
	"net/netip"
	"testing"
)

// VIPs whose copies want one place are all found, whichever of them came or went
// first, and by the next process too.
func TestVIPsOfOnePlace(t *testing.T) {
	b := open(t)
	want, _ := place(VIP{vip4, 1000, false})
	same := []VIP{{vip4, 1000, false}}
	for port := uint16(1001); len(same) < 3; port++ {
		for _, addr := range []netip.Addr{vip4, vip6} {
			if at, _ := place(VIP{addr, port, false}); at == want && len(same) < 3 {
				same = append(same, VIP{addr, port, false})
			}
		}
	}
	served := func(b *Balancer, v VIP) bool {
		t.Helper()
		verdict, _ := verdictOf(t, b, frame(v.Addr, isTCP, v.Port, tcp(syn)))
		return verdict == tx
	}
	if err := b.DeleteVIP(VIP{vip6, 0, false}); err != nil { // it has every port
		t.Fatal(err)
	}
	check := func(b *Balancer, when string, want ...bool) {
		t.Helper()
		for i, v := range same {
			if got := served(b, v); got != want[i] {
				t.Errorf("%s: %v is served: %v", when, v, got)
			}
		}
	}
	check(b, "before", false, false, false)
	for _, v := range same {
		if err := b.SetVIP(v, VIPEntry{Ring: 3}); err != nil {
			t.Fatal(err)
		}
	}
	check(b, "all", true, true, true)
	next := reopen(t, b.dir[:len(b.dir)-len(layout)-1])
	check(next, "the next process", true, true, true)
	for i, v := range same {
		if err := next.DeleteVIP(v); err != nil {
			t.Fatal(err)
		}
		check(next, "deleted", i < 0, i < 1, i < 2)
	}
	if err := next.SetVIP(same[2], VIPEntry{Ring: 3}); err != nil {
		t.Fatal(err)
	}
	check(next, "one alone", false, false, true)

	// What a process leaves that dies while it writes a copy.
	for _, key := range []uint64{changing, 0} {
		if err := next.objs.Fronts.Put(want, xdpFront{Key: key}); err != nil {
			t.Fatal(err)
		}
		check(reopen(t, b.dir[:len(b.dir)-len(layout)-1]), "mended", false, false, true)
	}
}

// Numbers of servers are small or large.
func TestNumbersOfServers(t *testing.T) {
	b := open(t)
	for _, id := range []uint32{1, 65535, 65536, 1<<32 - 1} {
		in := frame(vip4, isTCP, 443, tcp(ack, optionOf(id)...))
		if _, to := verdictOf(t, b, in); to != mac1 {
			t.Errorf("%d, which nobody has, leads to %x", id, to)
		}
		if err := b.SetServerID(id, 2); err != nil {
			t.Fatal(err)
		}
		if _, to := verdictOf(t, b, in); to != mac2 {
			t.Errorf("%d leads to %x", id, to)
		}
		held, err := b.Held()
		if err != nil || held.ServerIDs[id] != 2 || len(held.ServerIDs) != 2 {
			t.Errorf("%d: held %v, %v", id, held.ServerIDs, err)
		}
		if err := b.DeleteServerID(id); err != nil {
			t.Fatal(err)
		}
		if _, to := verdictOf(t, b, in); to != mac1 {
			t.Errorf("%d, which has gone, leads to %x", id, to)
		}
	}
}
