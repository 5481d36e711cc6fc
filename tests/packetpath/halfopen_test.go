// Package packetpath follows single packets through hosts made of namespaces.
package packetpath

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// startNode runs a supervisor on a host.
func startNode(t *testing.T, host *testnet.Host) (*demo.Node, *admin.Client) {
	t.Helper()
	n := node.Start(t, node.On(host), demo.Settings{})
	return n, admin.Dial(n.Socket())
}

// nobodyHears makes a host send what is for a peer to a station that does not
// exist: SYN-ACKs are lost on the way, as on a bad link. heard ends it.
func nobodyHears(t *testing.T, host, peer *testnet.Host) (heard func()) {
	t.Helper()
	set := func(f func(*netlink.Neigh) error) {
		err := host.Do(func() error {
			link, err := netlink.LinkByName(testnet.Interface)
			if err != nil {
				return err
			}
			return f(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, IP: peer.Addr4.AsSlice(), State: netlink.NUD_PERMANENT,
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0xde, 0xad},
			})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	set(netlink.NeighSet)
	return func() { set(netlink.NeighDel) }
}

// halfOpen counts the connections of a host in SYN_RECV, as /proc shows them.
func halfOpen(t *testing.T, host *testnet.Host) (n int) {
	t.Helper()
	out, err := host.Command("cat", "/proc/net/tcp").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 3 && f[3] == "03" {
			n++
		}
	}
	return n
}

// connect begins connections whose handshakes hang, and returns what each came to.
func connect(client *testnet.Host, to netip.AddrPort, n int) <-chan error {
	results := make(chan error, n)
	for range n {
		go func() {
			results <- func() error {
				c, err := client.Dial("tcp", to)
				if err != nil {
					return err
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(30 * time.Second))
				if _, err := c.Write([]byte("hello")); err != nil {
					return err
				}
				buf := make([]byte, 5)
				if _, err := c.Read(buf); err != nil || string(buf) != "hello" {
					return fmt.Errorf("echo %q, %w", buf, err)
				}
				return nil
			}()
		}()
	}
	return results
}

// kernelCounter reads one of the host's TcpExt counters.
func kernelCounter(t *testing.T, host *testnet.Host, name string) int {
	t.Helper()
	out, err := host.Command("cat", "/proc/net/netstat").Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, name); i > 0 {
			n, _ := strconv.Atoi(fields[i])
			return n
		}
	}
	t.Fatalf("the kernel has no counter %s", name)
	return 0
}

func generation(t *testing.T, c *admin.Client, id uint64) *supervisor.GenerationStatus {
	t.Helper()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range st.Generations {
		if g.ID == id {
			return &g
		}
	}
	return nil
}

// saysDraining reports whether a generation has been told to stop: it then says so.
func saysDraining(g *supervisor.GenerationStatus) bool {
	return g == nil || strings.Contains(g.Message, "drain")
}

const handshakes = 20

// A handshake that the old generation has begun is the old one's to finish: it
// is not told to stop before, and it serves the connection.
func TestHandshakesThatFinishInTime(t *testing.T) {
	hosts := testnet.New(t, "client", "node")
	client, server := hosts[0], hosts[1]
	running, c := startNode(t, server)

	heard := nobodyHears(t, server, client)
	results := connect(client, running.TCP, handshakes)
	node.Eventually(t, "the handshakes are half open", func() bool { return halfOpen(t, server) == handshakes })
	res, err := c.Release(t.Context(), supervisor.Request{NoVerify: true})
	if err != nil || res.Outcome != supervisor.Passed {
		t.Fatalf("%+v, %v", res, err)
	}
	if res.QueuedAtShift.HalfOpen != handshakes {
		t.Errorf("%d half-open connections at the shift, want %d", res.QueuedAtShift.HalfOpen, handshakes)
	}
	// Longer than any fence, shorter than the wait.
	time.Sleep(500 * time.Millisecond)
	if g := generation(t, c, 1); saysDraining(g) {
		t.Fatalf("generation 1 was told to stop with %d handshakes half open: %+v", halfOpen(t, server), g)
	}
	heard()
	for range handshakes {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	node.Eventually(t, "generation 1 ends", func() bool { return generation(t, c, 1) == nil })
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := count(st, "migrated"); n != 0 {
		t.Errorf("%d connections were migrated: none had to be", n)
	}
}

// A client that does not answer holds nobody up for long: after three seconds
// its handshake goes over by migration, is counted, and still ends well.
func TestHandshakesThatTakeTooLong(t *testing.T) {
	hosts := testnet.New(t, "client", "node")
	client, server := hosts[0], hosts[1]
	running, c := startNode(t, server)

	heard := nobodyHears(t, server, client)
	results := connect(client, running.TCP, handshakes)
	node.Eventually(t, "the handshakes are half open", func() bool { return halfOpen(t, server) == handshakes })
	begin := time.Now()
	res, err := c.Release(t.Context(), supervisor.Request{NoVerify: true})
	if err != nil || res.Outcome != supervisor.Passed {
		t.Fatalf("%+v, %v", res, err)
	}
	left := 0
	node.Eventually(t, "generation 1 ends", func() bool {
		g := generation(t, c, 1)
		if g != nil {
			left = g.HalfOpenLeft
		}
		return g == nil
	})
	if waited := time.Since(begin); waited < 3*time.Second {
		t.Errorf("generation 1 ended after %v, with handshakes half open for less than three seconds", waited)
	}
	if left != handshakes {
		t.Errorf("half_open_left was %d, want %d", left, handshakes)
	}
	heard()
	for range handshakes {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The program may run twice for one of them, when its SYN-ACK is sent again
	// and when its ACK comes; the kernel counts what it moved.
	if moved, lost := kernelCounter(t, server, "TCPMigrateReqSuccess"), kernelCounter(t, server, "TCPMigrateReqFailure"); moved != handshakes || lost != 0 {
		t.Errorf("the kernel moved %d handshakes and lost %d, want %d and 0", moved, lost, handshakes)
	}
	if n := count(st, "migrated"); n < handshakes {
		t.Errorf("%d migrations counted, want %d at least", n, handshakes)
	}
}

func count(st supervisor.Status, reason string) (n uint64) {
	for _, l := range st.Listeners {
		n += l.Runs[reason]
	}
	return n
}
