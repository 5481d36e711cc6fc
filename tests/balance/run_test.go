package balance

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

const nodeConfig = `node: {name: edge, server_id: 7}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
release: {verify: {window: 200ms}}
shutdown: {lead: 0s}
`

// `baton run` balances where its file says so: beside its node, through releases
// and the death of the supervisor, and its SIGHUP reads the balancer's part too.
func TestRunBalancesBesideItsNode(t *testing.T) {
	l := newLab(t, 3)
	third := l.reals[2]
	l.reals = l.reals[:2]
	var n *demo.Node
	t.Cleanup(func() { // when the node has ended
		if n == nil {
			return
		}
		file := filepath.Join(l.dir, "remove.yaml")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(l.text(), l.dir, n.Dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := l.baton("balance", "remove", "--config", file).CombinedOutput(); err != nil {
			t.Errorf("remove: %v: %s", err, out)
		}
		os.RemoveAll(n.Dir)
	})
	n = node.Start(t, node.On(l.balancer), demo.Settings{Config: nodeConfig + l.balancerPart()})
	states := func(want ...balancer.State) func() bool {
		return func() bool {
			st, err := admin.Dial(n.Socket()).BalancerStatus(t.Context())
			if err != nil || len(st.Reals) != len(want) || len(st.Interfaces) != 1 || !st.Interfaces[0].Attached {
				return false
			}
			for i, r := range st.Reals {
				if r.State != want[i] {
					return false
				}
			}
			return true
		}
	}
	node.Eventually(t, "it balances", states(balancer.Up, balancer.Up))
	flows := l.flows(20)

	if r, err := n.Release(t.Context(), ""); err != nil || r.ExitCode != 0 {
		t.Errorf("release: %+v, %v", r, err)
	}
	l.wantMoving(flows, "")
	drain := l.balancer.Command(filepath.Join(node.Build(t), "baton"), "--socket", n.Socket(), "balance", "drain", "node-1")
	if out, err := drain.CombinedOutput(); err != nil {
		t.Errorf("drain: %v, %s", err, out)
	}
	node.Eventually(t, "a real is drained", states(balancer.Drained, balancer.Up))

	n.Kill()
	l.wantMoving(append(flows, l.flows(5)...), "")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "the next supervisor goes on from there", states(balancer.Drained, balancer.Up))
	l.wantMoving(flows, "")

	l.reals = append(l.reals, third)
	if _, err := n.WriteConfig("first", demo.Settings{Config: nodeConfig + l.balancerPart()}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "a real is added", states(balancer.Drained, balancer.Up, balancer.Up))
	l.wantMoving(append(flows, l.flows(5)...), "")
}

// text is the file of `baton balance`, balancerPart what of it is the balancer's.
func (l *lab) text() string {
	l.t.Helper()
	text, err := os.ReadFile(l.config(""))
	if err != nil {
		l.t.Fatal(err)
	}
	return string(text)
}

func (l *lab) balancerPart() string {
	_, part, _ := strings.Cut(l.text(), "\nbalancer:")
	return "balancer:" + part
}
