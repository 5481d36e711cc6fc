package balance

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/tests/node"
)

// An interface that the file of the next process does not name is left, and those
// that it names serve on.
func TestInterfaceIsLeftByTheNextProcess(t *testing.T) {
	l := newLab(t, 1)
	l.do(l.balancer, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other0"}, PeerName: "other1"})
	})
	hangs := func() (hangs bool) {
		l.do(l.balancer, func() error {
			link, err := netlink.LinkByName("other0")
			if err == nil {
				hangs = link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached
			}
			return err
		})
		return hangs
	}
	l.start()
	flows := l.flows(5)
	text, err := os.ReadFile(l.config(""))
	if err != nil {
		t.Fatal(err)
	}
	both := strings.Replace(string(text), "[eth0]", "[eth0, other0]", 1)
	if err := os.WriteFile(l.dir+"/balancer.yaml", []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := l.command("reload"); code != 0 {
		t.Fatalf("reload: %d, %s", code, out)
	}
	node.Eventually(t, "the program hangs on the second interface", hangs)

	l.kill()
	if !hangs() {
		t.Error("without a process the program hangs there no more")
	}
	l.start() // by a file with the first alone
	node.Eventually(t, "the program hangs on the second interface no more", func() bool { return !hangs() })
	l.wantMoving(append(flows, l.flows(5)...), "")
}
