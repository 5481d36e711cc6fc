package packetpath

import (
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

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
	lost, kept := l.lose(claimConnections(t), node.Enough)
	if kept[0] == 0 || kept[1] == 0 {
		t.Errorf("connections to nodes that stay: %v", kept)
	}
	if lost != [2]int{} {
		t.Error("connections are lost in spite of their ids")
	}
}

// The same without ids: what the hash moves is lost. Only with BATON_TEST_CLAIM: a
// few connections may all be lucky.
func TestBalancerAndNodeLostWithoutIDs(t *testing.T) {
	n := claimConnections(t)
	if os.Getenv("BATON_TEST_CLAIM") == "" {
		t.Skip("a comparison, with BATON_TEST_CLAIM=400")
	}
	lost, kept := newLab(t, false).lose(n, 20*time.Second)
	if lost[0]+lost[1] == 0 {
		t.Errorf("nothing of %v was lost, so the run with ids proves nothing", kept)
	}
}

// The same with a middlebox that lets the TCP option not through: TCP is as without
// ids, and nothing else is worse.
func TestBalancerAndNodeLostOptionStripped(t *testing.T) {
	n := claimConnections(t)
	if os.Getenv("BATON_TEST_CLAIM") == "" {
		t.Skip("a comparison, with BATON_TEST_CLAIM=400")
	}
	l := newLab(t, true)
	l.strips.Store(true)
	lost, kept := l.lose(n, 20*time.Second)
	if lost[1] != 0 {
		t.Errorf("lost of QUIC: %d of %d", lost[1], kept[1])
	}
}

// lose connects, takes a balancer and a node away, and returns how many of the
// connections to other nodes, of TCP and of QUIC, moved no octets afterwards.
func (l *lab) lose(n int, patience time.Duration) (lost, kept [2]int) {
	t := l.t
	t.Helper()
	kinds := [2][]connection{connections(t, n, l.dialTCP), connections(t, n, l.dialQUIC)}
	for _, all := range kinds {
		for i, err := range exchangeAll(all, node.Enough) {
			if err != nil {
				t.Fatalf("before: connection %d: %v", i, err)
			}
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
		kept[kind] = len(left)
		for _, err := range exchangeAll(left, patience) {
			if err != nil {
				lost[kind]++
				if lost[kind] < 4 {
					t.Logf("%s: %v", []string{"TCP", "QUIC"}[kind], err)
				}
			}
		}
	}
	moved := 0
	for flow := range l.flowsAt(1, seen) {
		if before[flow] {
			moved++
		}
	}
	if moved == 0 {
		t.Errorf("none of the %d flows of the balancer that died was seen at the other one", len(before))
	}
	t.Logf("lost of TCP and QUIC: %v of %v; %d flows of the balancer that died were seen at the other one", lost, kept, moved)
	return lost, kept
}

// flowsAt are the clients' addresses, with ports, of what came to a balancer for the
// VIP, leaving out the first frames.
func (l *lab) flowsAt(balancer, from int) map[string]bool {
	flows := map[string]bool{}
	for _, f := range l.captures[balancer].Frames()[from:] {
		d := f.Data
		if f.Sent && len(d) >= 38 && d[12] == 8 && d[13] == 0 && d[14] == 0x45 && netip.AddrFrom4([4]byte(d[30:])) == vip {
			flows[string(d[23:24])+string(d[26:30])+string(d[34:36])] = true
		}
	}
	return flows
}
