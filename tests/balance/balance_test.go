package balance

import (
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/tests/node"
)

// Whatever becomes of a real, flows of others go on; what it loses itself is
// what it takes down with it. BATON_TEST_FLOWS says how many flows there are, and
// has it lose its link as well, which takes a minute to be believed.
func TestHealthTransitionsLoseOnlyFlowsOfTheDead(t *testing.T) {
	n, long := flowsUnderTest()
	l := newLab(t, 3)
	l.start()
	for _, r := range l.reals {
		l.await(r.name, balancer.Up)
	}
	flows := l.flows(n)
	for _, r := range l.reals {
		if len(at(flows, r.name)) == 0 {
			t.Fatalf("%s has none of %d flows", r.name, n)
		}
	}
	l.wantMoving(flows, "")
	sick := l.reals[1]
	after := func(transition string) {
		t.Helper()
		l.wantMoving(flows, sick.name)
		broken := 0
		for _, f := range flows {
			if _, err := f.state(); err != nil {
				broken++
			}
		}
		t.Logf("%s: %d of its %d flows have ended, 0 of the %d of others", transition, broken, len(at(flows, sick.name)), len(flows)-len(at(flows, sick.name)))
	}

	sick.health.Close()
	l.await(sick.name, balancer.Down)
	after("a real fails its checks")
	more := l.flows(n / 2)
	if got := len(at(more, sick.name)); got > 0 {
		t.Errorf("%d new flows of %d go to a real that is down", got, len(more))
	}
	flows = append(flows, more...)
	after("new flows begin")

	l.revive(sick)
	l.await(sick.name, balancer.Up)
	after("it passes them again")
	back := at(l.flows(n), sick.name)
	if len(back) == 0 {
		t.Errorf("a real that is up again gets none of %d new flows", n)
	}
	l.wantMoving(back, "")

	if !long {
		return
	}
	if err := sick.host.Unplug(); err != nil {
		t.Fatal(err)
	}
	flows = append(flows, back...)
	after("it loses its link")
	l.awaitNot(sick.name, balancer.Up)
	after("the balancer has noticed")
}

func TestDrainKeepsFlows(t *testing.T) {
	l := newLab(t, 3)
	l.start()
	flows := l.flows(40)
	out, code := l.command("drain", "node-1")
	if code != 0 || !strings.Contains(out, "drained") {
		t.Errorf("drain: %d, %s", code, out)
	}
	if n := len(at(l.flows(30), "node-1")); n > 0 {
		t.Errorf("%d of 30 new flows go to a drained real", n)
	}
	l.wantMoving(flows, "")

	// It stays drained when the file is read again and when another process goes on.
	if out, code := l.command("reload"); code != 0 {
		t.Errorf("reload: %d, %s", code, out)
	}
	l.await("node-1", balancer.Drained)
	l.kill()
	l.wantMoving(flows, "")
	l.start()
	l.await("node-1", balancer.Drained)
	l.wantMoving(flows, "")
	if out, code := l.command("drain", "--undo", "node-1"); code != 0 {
		t.Errorf("undo: %d, %s", code, out)
	}
	if n := len(at(l.flows(60), "node-1")); n == 0 {
		t.Error("a real that is drained no more gets none of 60 new flows")
	}
	if out, code := l.command("drain", "node-7"); code != 5 || !strings.Contains(out, `no real is named "node-7"`) {
		t.Errorf("drain of nobody: %d, %s", code, out)
	}
}

// Without a process, old flows go on and new ones are made. What the next process finds
// it goes on with: it has one real more, which no old flow goes over to.
func TestForwardingOutlivesTheProcess(t *testing.T) {
	l := newLab(t, 3)
	third := l.reals[2]
	l.reals = l.reals[:2]
	l.start()
	flows := l.flows(20)
	for range 2 {
		l.kill()
		l.wantMoving(flows, "")
		flows = append(flows, l.flows(10)...)
		l.reals = append(l.reals[:2], third)
		l.start()
		l.await(third.name, balancer.Up)
		l.wantMoving(flows, "")
	}
	// It ends as it should, too.
	l.process.Process.Signal(syscall.SIGTERM)
	<-l.ended
	if code := l.process.ProcessState.ExitCode(); code != 0 {
		t.Errorf("SIGTERM: exit code %d", code)
	}
	l.wantMoving(append(flows, l.flows(10)...), "")
	l.start()
}

func TestReloadByCommandAndSignal(t *testing.T) {
	l := newLab(t, 3)
	third := l.reals[2]
	l.reals = l.reals[:2]
	l.start()
	flows := l.flows(40)

	l.reals = append(l.reals, third)
	l.config("")
	if out, code := l.command("reload"); code != 0 || !strings.Contains(out, "3 reals and 1 VIPs") {
		t.Errorf("reload: %d, %s", code, out)
	}
	l.await("node-3", balancer.Up)
	if n := len(at(l.flows(60), "node-3")); n == 0 {
		t.Error("a real that was added gets none of 60 new flows")
	}
	l.wantMoving(flows, "")

	// A mistake changes nothing.
	l.config("  firewall: {}\n")
	if out, code := l.command("reload"); code != 5 || !strings.Contains(out, "the firewall is not built yet") {
		t.Errorf("reload of a mistake: %d, %s", code, out)
	}
	if st := l.status(); len(st.Reals) != 3 || st.Reloads.Failed != 1 || st.Reloads.Problem == "" {
		t.Errorf("after it: %+v", st)
	}

	l.reals = l.reals[:2]
	l.config("")
	l.process.Process.Signal(syscall.SIGHUP)
	node.Eventually(t, "SIGHUP takes the third real out", func() bool { return len(l.status().Reals) == 2 })
	l.wantMoving(flows, "")
}

func TestInterfaceComesAndGoes(t *testing.T) {
	l := newLab(t, 1)
	file := l.config("")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	l.start()
	flows := l.flows(5)
	both := strings.Replace(string(text), "[eth0]", "[eth0, late0]", 1)
	if err := os.WriteFile(file, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := l.command("reload"); code != 0 {
		t.Fatalf("reload: %d, %s", code, out)
	}
	attached := func(name string, want bool) func() bool {
		return func() bool {
			for _, i := range l.status().Interfaces {
				if i.Name == name {
					return i.Attached == want && (want || i.Problem != "")
				}
			}
			return false
		}
	}
	node.Eventually(t, "the interface that is not there is missed", attached("late0", false))
	for range 3 {
		l.do(l.balancer, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late0"}, PeerName: "late1"})
		})
		node.Eventually(t, "the program hangs on the interface that came", attached("late0", true))
		l.do(l.balancer, func() error {
			link, err := netlink.LinkByName("late0")
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		})
		node.Eventually(t, "the interface that went is missed", attached("late0", false))
	}
	l.wantMoving(flows, "")
}

func TestWhatCannotBeAttachedTo(t *testing.T) {
	l := newLab(t, 1)
	l.start()
	flows := l.flows(5)
	text, err := os.ReadFile(l.config(""))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"another's program": {"xdp_mode: generic", "xdp_mode: generic", "another XDP program"},
		"no native XDP":     {"interfaces: [eth0]\n  xdp_mode: generic", "interfaces: [lo]\n  xdp_mode: native", "xdp_mode: generic"},
	} {
		t.Run(name, func(t *testing.T) {
			other := strings.Replace(strings.Replace(string(text), test.old, test.new, 1), l.dir, l.dir+"/other", 1)
			other = strings.Replace(other, `"127.0.0.1:9900"`, `""`, 1)
			file := l.dir + "/other.yaml"
			if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
				t.Fatal(err)
			}
			out, code := l.command("--config", file, "--socket", l.dir+"/other.sock")
			if code != 1 || !strings.Contains(out, test.want) {
				t.Errorf("%d, %s", code, out)
			}
			if out, code := l.command("remove", "--config", file); code != 0 {
				t.Errorf("remove: %d, %s", code, out)
			}
		})
	}
	l.wantMoving(append(flows, l.flows(5)...), "")
}

func TestSimulateSaysWhere(t *testing.T) {
	l := newLab(t, 2)
	l.start()
	for _, test := range []struct {
		args []string
		want func(balancer.Where) bool
	}{
		{[]string{"--to", "10.88.0.1:8080", "--syn"}, func(w balancer.Where) bool { return w.Real != "" && w.Reason == "ring" }},
		{[]string{"--to", "10.88.0.1:8080", "--server-id", "2"}, func(w balancer.Where) bool { return w.Real == "node-2" && w.Reason == "option" }},
		{[]string{"--to", "10.88.0.1:8080", "--server-id", "99"}, func(w balancer.Where) bool { return w.Real != "" && w.Reason == "ring" && len(w.Beside) > 0 }},
		{[]string{"--to", "10.88.0.1:81"}, func(w balancer.Where) bool { return w.Real == "" && w.Verdict == "pass" }},
		{[]string{"--to", "10.88.0.2:8080"}, func(w balancer.Where) bool { return w.Real == "" && w.Verdict == "pass" }},
	} {
		before := l.status().VIPs[0].Packets
		out, code := l.command(append([]string{"simulate", "-o", "json", "--from", "192.0.2.7:40000"}, test.args...)...)
		if code != 0 {
			t.Errorf("%v: %d, %s", test.args, code, out)
			continue
		}
		if w := decode[balancer.Where](t, out); !test.want(w) {
			t.Errorf("%v: %+v", test.args, w)
		}
		for reason, n := range l.status().VIPs[0].Packets {
			if n != before[reason] {
				t.Errorf("%v: counted as %s", test.args, reason)
			}
		}
	}
	// What it says is true.
	flows := l.flows(10)
	for _, f := range flows {
		from := f.conn.LocalAddr().String()
		out, _ := l.command("simulate", "-o", "json", "--from", from, "--to", netip.AddrPortFrom(vip, vipPort).String())
		if w := decode[balancer.Where](t, out); w.Real != f.real || w.Reason != "table" {
			t.Errorf("the flow from %s is with %s: %+v", from, f.real, w)
		}
	}
}
