package xdp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/baton-mesh/baton/tests/testnet"
)

// A build whose connection table was a hash has left a program that works by it:
// what it has learned goes over, also in the moment before it is replaced.
func TestFlowsOfAHash(t *testing.T) {
	host := testnet.New(t, "balancer")[0]
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	attach := func(b *Balancer) {
		t.Helper()
		must(host.Do(func() error {
			eth0, err := net.InterfaceByName(testnet.Interface)
			if err != nil {
				return err
			}
			return b.Attach(eth0.Name, eth0.Index, true)
		}))
	}
	b := open(t)
	attach(b)
	before := filepath.Join(filepath.Dir(b.dir), "xdp-v3")
	must(os.Rename(b.dir, before))
	must(os.Remove(filepath.Join(before, "flows")))
	hash, err := ebpf.NewMap(&ebpf.MapSpec{Name: "flows", Type: ebpf.LRUHash, KeySize: 24, ValueSize: 16, MaxEntries: 8192})
	must(err)
	defer hash.Close()
	must(hash.Pin(filepath.Join(before, "flows")))

	boot := hashedFlow{Real: 2} // learned when the machine began
	clock, err := now()
	must(err)
	learned := func(client string, udp bool, f hashedFlow) {
		t.Helper()
		key := hashedKey{addrOf(netip.MustParseAddr(client)), uint32(wire(40000)) | uint32(wire(443))<<16, b.vips[VIP{vip4, 443, udp}].Serial}
		must(hash.Put(key, f))
	}
	var clients []string
	for i := range 4000 {
		clients = append(clients, netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String())
		learned(clients[i], false, boot)
	}
	learned("192.1.0.1", true, hashedFlow{Real: 2, Seen: clock})
	learned("192.1.0.2", true, boot)
	learned("192.1.0.3", false, hashedFlow{Real: 2, Epoch: 1})
	next := reopenWith(t, Options{Dir: filepath.Dir(b.dir), UDPIdle: clock / 2})
	learned("192.1.0.4", false, boot)
	attach(next)
	if _, err := os.Stat(before); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("what was before is still pinned: %v", err)
	}
	table := make([]uint32, 251)
	for i := range table {
		table[i] = 1
	}
	must(setRing(next, 3, table))
	must(next.objs.Links.Put(uint32(loopback), xdpLink{Ifindex: loopback, Mac: ours}))
	from := func(client string, f []byte) []byte {
		copy(f[14+12:], netip.MustParseAddr(client).AsSlice())
		return f
	}
	for i, client := range clients {
		if _, to := verdictOf(t, next, from(client, frame(vip4, isTCP, 443, tcp(ack)))); to != mac2 {
			t.Fatalf("flow %d of %d goes to %x", i, len(clients), to)
		}
	}
	for _, test := range []packetCase{
		{"datagrams", from("192.1.0.1", frame(vip4, isUDP, 443, udp([]byte("x")))), 2, "table"},
		{"datagrams long ago", from("192.1.0.2", frame(vip4, isUDP, 443, udp([]byte("x")))), 1, "ring"},
		{"of another node at the place", from("192.1.0.3", frame(vip4, isTCP, 443, tcp(ack))), 1, "ring"},
		{"learned in the last moment", from("192.1.0.4", frame(vip4, isTCP, 443, tcp(ack))), 2, "table"},
	} {
		expect(t, next, test)
	}
}
