package packetpath

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/node"
)

// claimConnections is how many of TCP, and of QUIC, are looked at. Many with
// BATON_TEST_CLAIM.
func claimConnections(t *testing.T) int {
	t.Helper()
	text := os.Getenv("BATON_TEST_CLAIM")
	if text == "" {
		return 24
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A balancer dies and a node is taken away in the same second. With the node's
// number in connection IDs and TCP options every connection to a node that is left
// goes on, wherever the router now sends its packets.
func TestBalancerAndNodeLost(t *testing.T) {
	l := newLab(t, true)
	got := l.lose(claimConnections(t), node.Enough)
	if got.kept[0] == 0 || got.kept[1] == 0 {
		t.Errorf("connections to nodes that stay: %v", got.kept)
	}
	if got.lost != [2]int{} {
		t.Error("connections are lost in spite of their ids")
	}
	got.mustHaveBeenHard(t)
}

// The same without ids: what the ring moves is lost. Only with BATON_TEST_CLAIM: of
// a few connections all may be at the balancer that stays.
func TestBalancerAndNodeLostWithoutIDs(t *testing.T) {
	n := claimConnections(t)
	if os.Getenv("BATON_TEST_CLAIM") == "" {
		t.Skip("a comparison: make claim")
	}
	got := newLab(t, false).lose(n, 20*time.Second)
	if got.lost[0] < enoughLost || got.lost[1] < enoughLost {
		t.Errorf("of %v %v were lost: too few for the run with ids to prove anything", got.kept, got.lost)
	}
}

// The same with a middlebox that lets the TCP option not through: TCP is as without
// ids, and nothing else is worse.
func TestBalancerAndNodeLostOptionStripped(t *testing.T) {
	n := claimConnections(t)
	if os.Getenv("BATON_TEST_CLAIM") == "" {
		t.Skip("a comparison: make claim")
	}
	l := newLab(t, true)
	l.strips.Store(true)
	got := l.lose(n, 20*time.Second)
	if got.lost[1] != 0 {
		t.Errorf("lost of QUIC: %d of %d", got.lost[1], got.kept[1])
	}
	if got.lost[0] > got.moved[0] {
		t.Errorf("%d of TCP were lost, and the ring moves %d: something else is worse", got.lost[0], got.moved[0])
	}
	got.mustHaveBeenHard(t)
}

// enoughLost is how many connections of each protocol the control has to lose.
const enoughLost = 10

// losses are of TCP and of QUIC.
type losses struct {
	kept  [2]int // connections to nodes that stay
	moved [2]int // of these: whose balancer died, and whose slot names another node now
	lost  [2]int // of the first: which moved no octets afterwards
}

// mustHaveBeenHard fails where a whole run had too few connections that ids have saved.
func (got losses) mustHaveBeenHard(t *testing.T) {
	t.Helper()
	if os.Getenv("BATON_TEST_CLAIM") != "" && (got.moved[0] < enoughLost || got.moved[1] < enoughLost) {
		t.Errorf("of %v connections the ring moved %v: too few to prove anything", got.kept, got.moved)
	}
}

// lose connects, takes a balancer and a node away, and has every connection to
// another node move octets again.
func (l *lab) lose(n int, patience time.Duration) (got losses) {
	t := l.t
	t.Helper()
	tcp, udp := l.ports(n)
	l.connectFrom(tcp)
	kinds := [2][]connection{connections(t, n, tcp, l.dialTCP), connections(t, n, udp, l.dialQUIC)}
	for _, all := range kinds {
		for i, err := range exchangeAll(all, node.Enough) {
			if err != nil {
				t.Fatalf("before: connection %d: %v", i, err)
			}
		}
	}
	for i, c := range kinds[1] {
		if c.node() != udp[i].node {
			t.Errorf("from port %d %s answers, and the ring says %s", udp[i].number, c.node(), udp[i].node)
		}
	}

	before := l.flowsAt(0, 0)
	seen := len(l.captures[1].Frames())
	began := time.Now()
	gone := l.nodes[len(l.nodes)-1]
	stay := l.nodes[:len(l.nodes)-1]
	l.balancers[0].die()
	if err := gone.host.Unplug(); err != nil {
		t.Fatal(err)
	}
	l.balancers[1].write(stay...)
	if out, err := l.balancers[1].baton("reload"); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	l.route(l.balancers[1])
	t.Logf("a balancer and a node were taken away within %v", time.Since(began).Round(time.Millisecond))

	for kind, all := range kinds {
		var left []connection
		for _, c := range all {
			if c.node() != gone.name {
				left = append(left, c)
			}
		}
		got.kept[kind] = len(left)
		for _, p := range [][]clientPort{tcp, udp}[kind] {
			if p.moves && before[flow{[]byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[kind], p.number}] {
				got.moved[kind]++
			}
		}
		for _, err := range exchangeAll(left, patience) {
			if err != nil {
				got.lost[kind]++
				if got.lost[kind] < 4 {
					t.Logf("%s: %v", []string{"TCP", "QUIC"}[kind], err)
				}
			}
		}
	}
	rerouted := 0
	for flow := range l.flowsAt(1, seen) {
		if before[flow] {
			rerouted++
		}
	}
	if rerouted == 0 {
		t.Errorf("none of the %d flows of the balancer that died was seen at the other one", len(before))
	}
	t.Logf("lost of TCP and QUIC: %v of %v; %d flows of the balancer that died were seen at the other one, and of %v of them the ring moved the slot",
		got.lost, got.kept, rerouted, got.moved)
	return got
}

// flow is what the clients' connections to the VIP differ in.
type flow struct {
	protocol byte
	port     uint16
}

// flowsAt are those that came to a balancer, leaving out the first frames.
func (l *lab) flowsAt(balancer, from int) map[flow]bool {
	flows := map[flow]bool{}
	for _, f := range l.captures[balancer].Frames()[from:] {
		d := f.Data
		if f.Sent && len(d) >= 38 && d[12] == 8 && d[13] == 0 && d[14] == 0x45 && netip.AddrFrom4([4]byte(d[30:])) == vip &&
			netip.AddrFrom4([4]byte(d[26:])) == l.clients.Addr4 {
			flows[flow{d[23], binary.BigEndian.Uint16(d[34:])}] = true
		}
	}
	return flows
}
