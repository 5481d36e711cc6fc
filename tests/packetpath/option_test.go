package packetpath

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/sockops"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

// optionConfig is of a node of one stream listener; ID, OPTION and UPSTREAM are the test's.
const optionConfig = `node: {name: demo, server_id: ID, tcp_option: OPTION}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
  - {name: raw, address: "{{.Node.TCP}}", protocol: tcp}
routes:
  - {name: all, listeners: [web], upstreams: [{name: origin}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: echo, endpoints: ["UPSTREAM"]}
release: {drain_timeout: 1m, verify: {window: 100ms}}
steering: bpf
shutdown: {lead: 0s}
`

func optionSettings(id, option, upstream string) demo.Settings {
	return demo.Settings{Config: strings.NewReplacer("ID", id, "OPTION", option, "UPSTREAM", upstream).Replace(optionConfig)}
}

// An edge's connections to a node carry the node's number from the handshake to
// the end, over releases at both ends and after the edge's supervisor was killed;
// the node's clients that know nothing of it are served as ever.
func TestOptionPassesBetweenNodes(t *testing.T) {
	var mu sync.Mutex
	var seen []testnet.Segment
	edgeHost, nodeHost := testnet.Through(t, 0, func(_ *testnet.Host, packet []byte) []byte {
		if s, ok := testnet.ParseSegment(append([]byte(nil), packet...)); ok {
			mu.Lock()
			seen = append(seen, s)
			mu.Unlock()
		}
		return packet
	}, "edge", "node")

	served := node.Start(t, node.On(nodeHost), optionSettings("258", "{tell: true}", "{{.Origin.EchoAddress}}"))
	edge := node.Start(t, node.On(edgeHost), optionSettings("3", "{tell: true, echo: true}", served.TCP.String()))

	echo := func(c net.Conn) {
		t.Helper()
		c.SetDeadline(time.Now().Add(node.Enough))
		if _, err := c.Write([]byte("octets")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(from *testnet.Host, to netip.AddrPort) net.Conn {
		t.Helper()
		c, err := from.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	long := dial(edgeHost, edge.TCP)
	echo(long)
	for _, n := range []*demo.Node{served, edge} {
		if _, err := n.Release(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		echo(long)
		echo(dial(edgeHost, edge.TCP))
	}
	edge.Kill()
	echo(long)
	if err := edge.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	echo(long)
	echo(dial(edgeHost, edge.TCP))

	const id = "\x00\x00\x01\x02" // 258
	synAcks, echoed, ended := 0, 0, map[netip.AddrPort]bool{}
	mu.Lock()
	for _, s := range seen {
		switch {
		case s.From == served.TCP && s.Flags&testnet.SYN != 0:
			synAcks++
			if string(s.Option(sockops.KindAnswer)) != id {
				t.Errorf("a SYN-ACK has the options % x", s.Options)
			}
		case s.To == served.TCP && s.Flags&testnet.SYN == 0:
			echoed++
			if ended[s.From] && s.Flags&testnet.FIN == 0 {
				continue // a socket whose process has closed it is no whole one any more
			}
			ended[s.From] = s.Flags&testnet.FIN != 0
			if string(s.Option(sockops.KindEcho)) != id {
				t.Fatalf("a segment of the edge has the options % x", s.Options)
			}
		case s.Option(sockops.KindAnswer) != nil || s.Option(sockops.KindEcho) != nil:
			t.Fatalf("a segment from %v to %v with flags %x has the options % x", s.From, s.To, s.Flags, s.Options)
		}
	}
	mu.Unlock()
	if synAcks < 4 || echoed < 4*3 { // and those of probes
		t.Errorf("%d SYN-ACKs and %d segments of the edge were seen", synAcks, echoed)
	}

	echo(dial(edgeHost, served.TCP)) // not from a generation: nobody there echoes
	c := admin.Dial(edge.Socket())
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []sockops.Event{sockops.Answered, sockops.Learned, sockops.Echoed} {
		if st.TCPOption[event.String()] == 0 {
			t.Errorf("the edge's status has no %s: %v", event, st.TCPOption)
		}
	}
}
