package packetpath

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/xdp"
	"github.com/baton-mesh/baton/supervisor/balancer/maglev"
	"github.com/baton-mesh/baton/tests/scratch"
)

// The ports that clients connect from: the kernel's choice of them, IANA's aside.
const (
	firstPort = 32768
	lastPort  = 60999
)

// clientPort is one to connect to the VIP from.
type clientPort struct {
	number uint16
	node   string // who gets what comes from it
	moves  bool   // it is another one once the last node is gone, though this one stays
}

// spare is how many ports there are beside those wanted: one may still be of a
// connection from before.
const spare = 8

// ports are where the clients' n connections of each protocol come from. Of a fifth
// of them the slot of the ring goes from one node to another when the last node is
// gone, though the first one stays. Few slots do, one in some hundreds: ports taken at
// random would hardly show what ids are for. They come first, then any others. It
// is the program that says where a packet would go, by a ring of all nodes and by
// one of all but the last.
func (l *lab) ports(n int) (tcp, udp []clientPort) {
	l.t.Helper()
	b, err := xdp.Open(xdp.Options{Dir: scratch.Pins(l.t), RingSize: maglev.Small})
	if err != nil {
		l.t.Fatal(err)
	}
	defer b.Close()
	var all []maglev.Backend
	for i, node := range l.nodes {
		all = append(all, maglev.Backend{Key: node.host.Addr4.String(), Value: uint32(i + 1), Weight: 1})
		if err := b.SetReal(uint32(i+1), xdp.Real{Addr: node.host.Addr4, Local: true}); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := b.SetRings([]uint32{0, 1}, func(ring uint32, table []uint32) {
		maglev.Fill(table, all[:len(all)-int(ring)])
	}); err != nil {
		l.t.Fatal(err)
	}
	return l.portsFor(b, n, unix.IPPROTO_TCP, vipTCP), l.portsFor(b, n, unix.IPPROTO_UDP, vipQUIC)
}

func (l *lab) portsFor(b *xdp.Balancer, n int, protocol byte, to netip.AddrPort) (chosen []clientPort) {
	l.t.Helper()
	where := func(ring uint32, port uint16) uint32 {
		e, err := b.Explain(firstPacket(protocol, netip.AddrPortFrom(l.clients.Addr4, port), to))
		if err != nil || e.Reason != "ring" {
			l.t.Fatalf("port %d of protocol %d in ring %d: %+v, %v", port, protocol, ring, e, err)
		}
		return e.Index
	}
	of := func(ring uint32) {
		vip := xdp.VIP{Addr: to.Addr(), Port: to.Port(), UDP: protocol == unix.IPPROTO_UDP}
		if err := b.SetVIP(vip, xdp.VIPEntry{Ring: ring}); err != nil {
			l.t.Fatal(err)
		}
	}
	wanted := map[bool]int{true: n / 5, false: n - n/5 + spare}
	const atOnce = 1000
	for first := firstPort; first <= lastPort && wanted[true]+wanted[false] > 0; first += atOnce {
		var before, after [atOnce]uint32
		of(0)
		for i := range before {
			before[i] = where(0, uint16(first+i))
		}
		of(1)
		for i := range after {
			after[i] = where(1, uint16(first+i))
		}
		for i, real := range before {
			moves := real != after[i] && real != uint32(len(l.nodes))
			if port := first + i; port <= lastPort && wanted[moves] > 0 {
				wanted[moves]--
				chosen = append(chosen, clientPort{uint16(port), l.nodes[real-1].name, moves})
			}
		}
	}
	slices.SortStableFunc(chosen, func(a, b clientPort) int { return cmp.Compare(order(a), order(b)) })
	if len(chosen) < n+spare {
		l.t.Fatalf("%d of %d ports of protocol %d were found", len(chosen), n+spare, protocol)
	}
	return chosen
}

func order(p clientPort) int {
	if p.moves {
		return 0
	}
	return 1
}

// firstPacket begins a connection: its headers alone, as far as the program reads them.
func firstPacket(protocol byte, from, to netip.AddrPort) []byte {
	p := make([]byte, 60)
	p[0], p[8], p[9] = 4<<4|5, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	if protocol == unix.IPPROTO_TCP {
		p[32], p[33] = 40/4<<4, 2 // the header's length; SYN
	} else {
		binary.BigEndian.PutUint16(p[24:], uint16(len(p)-20))
	}
	return p
}

// connectFrom leaves the clients' host these ports alone to connect from.
func (l *lab) connectFrom(ports []clientPort) {
	l.t.Helper()
	allowed := map[int]bool{}
	for _, p := range ports {
		allowed[int(p.number)] = true
	}
	var reserved strings.Builder
	for port := firstPort; port <= lastPort; port++ {
		if allowed[port] {
			continue
		}
		last := port
		for last < lastPort && !allowed[last+1] {
			last++
		}
		fmt.Fprintf(&reserved, "%d-%d,", port, last)
		port = last
	}
	err := l.clients.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte(strings.TrimSuffix(reserved.String(), ",")), 0)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}
