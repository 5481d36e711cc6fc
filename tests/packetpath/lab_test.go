package packetpath

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/sockops"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

// A data centre out of namespaces. Four nodes share an address, the VIP, that
// balancers spread over them; a router has two ways to the VIP, one through each
// balancer, and keeps a flow on its way by a hash of addresses and ports. Answers
// go straight back to the router.
//
//	clients, edge node ── middlebox ── router ──┬── balancer 1 ──┐
//	(baton run, echo)                           ├── balancer 2 ──┤
//	                                            └── nodes 1 to 4 ┘ (baton run, tell)
//
// All but the edge are on one switch; balancers send with their XDP program, in
// native mode, out of the link that a packet came in by.
type lab struct {
	t         *testing.T
	ids       bool // nodes tell their number, and balancers look for it
	router    *testnet.Host
	balancers []*balancerHost
	nodes     []*labNode
	clients   *testnet.Host // the edge node's host
	edge      *demo.Node

	strips   atomic.Bool // the middlebox takes the TCP option away
	captures [2]*testnet.Capture
}

// What is on the VIP.
var (
	vip     = netip.AddrFrom4([4]byte{10, 9, 0, 1})
	vipTCP  = netip.AddrPortFrom(vip, 8081)
	vipQUIC = netip.AddrPortFrom(vip, 8443)
	edgeTCP = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 8081)
)

type labNode struct {
	*demo.Node
	name string
	host *testnet.Host
	id   int
	busy atomic.Pointer[chan struct{}] // nil: as many as come
}

const labNodeConfig = `node: {name: NAME, server_id: NUMBER, tcp_option: {tell: WITHIDS}}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "ADMIN"}
listeners:
  - {name: raw, address: "VIPTCP", protocol: tcp}
  - {name: edge, address: "VIPQUIC", protocol: https, http3: true, tls: {cert_file: cert.pem, key_file: key.pem}}
routes:
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
  - {name: all, listeners: [edge], upstreams: [{name: origin}]}
upstreams:
  - {name: echo, endpoints: ["ECHO"]}
  - {name: origin, endpoints: ["ORIGIN"]}
release: {drain_timeout: 2s, verify: {window: 100ms}}
steering: bpf
shutdown: {lead: 0s}
`

const labEdgeConfig = `node: {name: edge, server_id: 1, tcp_option: {echo: WITHIDS}}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: raw, address: "EDGE", protocol: tcp}
routes:
  - {name: raw, listeners: [raw], upstreams: [{name: vip}]}
upstreams:
  - {name: vip, endpoints: ["VIPTCP"], connect_timeout: 30s}
release: {drain_timeout: 2s, verify: {window: 100ms}}
steering: bpf
shutdown: {lead: 0s}
`

// newLab starts everything but the connections. Without ids no node tells its
// number and no balancer looks for one.
func newLab(t *testing.T, ids bool) *lab {
	t.Helper()
	l := &lab{t: t, ids: ids}
	hosts := testnet.New(t, "router", "balancer-1", "balancer-2", "node-1", "node-2", "node-3", "node-4")
	l.router = hosts[0]
	l.clients = testnet.Behind(t, l.router, l.middlebox, "clients")
	for i, host := range hosts[3:] {
		l.nodes = append(l.nodes, l.startNode(host, 11+i))
	}
	for _, host := range hosts[1:3] {
		l.captures[len(l.balancers)] = host.CaptureAtSwitch(t)
		l.balancers = append(l.balancers, l.startBalancer(host))
	}
	l.route(l.balancers...)
	place := node.On(l.clients)
	place.Addr = edgeTCP.Addr()
	l.edge = node.Start(t, place, l.settings(labEdgeConfig))
	return l
}

func (l *lab) settings(config string, more ...string) demo.Settings {
	r := strings.NewReplacer(append(more, "VIPTCP", vipTCP.String(), "VIPQUIC", vipQUIC.String(), "EDGE", edgeTCP.String(), "WITHIDS", fmt.Sprint(l.ids))...)
	return demo.Settings{Config: r.Replace(config)}
}

// middlebox is on the link between the edge and the router.
func (l *lab) middlebox(_ *testnet.Host, packet []byte) []byte {
	if l.strips.Load() {
		if s, ok := testnet.ParseSegment(packet); ok {
			s.Strip(sockops.KindAnswer)
			s.Strip(sockops.KindEcho)
		}
	}
	return packet
}

// route sends the VIP's packets through these balancers.
func (l *lab) route(through ...*balancerHost) {
	l.t.Helper()
	var gateways []netip.Addr
	for _, b := range through {
		gateways = append(gateways, b.host.Addr4)
	}
	if err := l.router.Route(vip.String()+"/32", gateways...); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) startNode(host *testnet.Host, id int) *labNode {
	l.t.Helper()
	n := &labNode{name: host.Name, host: host, id: id}
	if err := host.Own(vip); err != nil {
		l.t.Fatal(err)
	}
	if err := host.Route("10.78.0.0/24", l.router.Addr4); err != nil {
		l.t.Fatal(err)
	}
	echo, origin := n.serve(l.t)
	place := node.On(host)
	place.Addr = vip
	n.Node = node.Start(l.t, place, l.settings(labNodeConfig, "NAME", n.name, "ADMIN", netip.AddrPortFrom(host.Addr4, 9900).String(),
		"ECHO", echo, "ORIGIN", origin, "NUMBER", fmt.Sprint(id)))
	return n
}

// serve is what stands behind a node: it says the node's name and repeats what it
// is sent.
func (n *labNode) serve(t *testing.T) (echo, origin string) {
	t.Helper()
	streams, err1 := n.host.Listen("127.0.0.1:0")
	requests, err2 := n.host.Listen("127.0.0.1:0")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Node", n.name)
		io.Copy(w, r.Body)
	})}
	go server.Serve(requests)
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if busy := n.busy.Load(); busy != nil {
					*busy <- struct{}{}
					time.Sleep(serviceTime)
					<-*busy
				}
				if _, err := fmt.Fprintln(c, n.name); err == nil {
					io.Copy(c, c)
				}
			}()
		}
	}()
	t.Cleanup(func() {
		streams.Close()
		server.Close()
	})
	return streams.Addr().String(), requests.Addr().String()
}

// balancerHost is a host with `baton balance`.
type balancerHost struct {
	lab   *lab
	host  *testnet.Host
	dir   string
	cmd   *exec.Cmd
	ended chan struct{}
}

func (l *lab) startBalancer(host *testnet.Host) *balancerHost {
	l.t.Helper()
	dir, err := os.MkdirTemp("", "baton-balancer-")
	if err != nil {
		l.t.Fatal(err)
	}
	b := &balancerHost{lab: l, host: host, dir: dir, ended: make(chan struct{})}
	host.AnswersByXDP(l.t)
	b.write(l.nodes...)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		l.t.Fatal(err)
	}
	b.cmd = host.Command(filepath.Join(node.Build(l.t), "baton"), "balance", "--config", filepath.Join(dir, "baton.yaml"))
	b.cmd.Stdout, b.cmd.Stderr = log, log
	err = b.cmd.Start()
	log.Close()
	if err != nil {
		l.t.Fatal(err)
	}
	go func() {
		b.cmd.Wait()
		close(b.ended)
	}()
	l.t.Cleanup(func() {
		b.cmd.Process.Kill()
		<-b.ended
		if out, err := b.baton("remove"); err != nil {
			l.t.Errorf("%s: remove: %v: %s", host.Name, err, out)
		}
		if l.t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			l.t.Logf("the log of %s:\n%s", host.Name, text)
		}
		os.RemoveAll(dir)
	})
	node.Eventually(l.t, host.Name+" serves", func() bool {
		select {
		case <-b.ended:
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			l.t.Fatalf("%s ended: %s", host.Name, text)
		default:
		}
		text, _ := os.ReadFile(filepath.Join(dir, "log")) // it says so when the tables are filled
		return strings.Contains(string(text), `"msg":"balancing"`)
	})
	return b
}

// write makes the balancer's file name these nodes.
func (b *balancerHost) write(nodes ...*labNode) {
	b.lab.t.Helper()
	var text strings.Builder
	fmt.Fprintf(&text, `runtime_dir: %s/run
admin: {socket: %[1]s/run/admin.sock, address: ""}
balancer:
  interfaces: [eth0]
  xdp_mode: native
  forwarding: l2
  health: {tcp_port: 0}
  vips:
    - {address: "%s", port: %d, protocols: [tcp]}
    - {address: "%[2]s", port: %[4]d, protocols: [udp], quic: %v}
  reals:
`, b.dir, vip, vipTCP.Port(), vipQUIC.Port(), b.lab.ids)
	for _, n := range nodes {
		fmt.Fprintf(&text, "    - {name: %s, address: %s, server_id: %d}\n", n.name, n.host.Addr4, n.id)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "baton.yaml"), []byte(text.String()), 0o644); err != nil {
		b.lab.t.Fatal(err)
	}
}

// baton runs a sub-command of `baton balance`.
func (b *balancerHost) baton(args ...string) (string, error) {
	args = append([]string{"balance"}, args...)
	if args[1] == "remove" {
		args = append(args, "--config", filepath.Join(b.dir, "baton.yaml"))
	} else {
		args = append(args, "--socket", filepath.Join(b.dir, "run", "admin.sock"))
	}
	out, err := b.host.Command(filepath.Join(node.Build(b.lab.t), "baton"), args...).CombinedOutput()
	return string(out), err
}

// die ends the balancer's process and takes its link away, as when a host loses
// its power.
func (b *balancerHost) die() {
	b.lab.t.Helper()
	b.cmd.Process.Signal(syscall.SIGKILL)
	<-b.ended
	if err := b.host.Unplug(); err != nil {
		b.lab.t.Error(err)
	}
}
