package supervisor

import (
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// misroute connects from a port that is steered to a slot as if somebody had
// written that into the table.
func (n *node) misroute(slot uint8) net.Conn {
	n.t.Helper()
	to := netip.MustParseAddrPort(n.addr)
	by := n.s.steering.(*steer.BPF)
	var from netip.AddrPort
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			if from, err = claimSource(int(fd), to); err == nil {
				err = by.Steer(from, slot)
			}
		})
		return err
	}}
	d.SetMultipathTCP(false)
	conn, err := d.Dial("tcp", n.addr)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close(); by.Unsteer(from) })
	return conn
}

// One flow at a generation that no shift names is enough, each time.
func TestMisroutedFlowIsFound(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	for range 3 {
		r := n.inVerify(n.like("serve", long))
		// When the account of the previous one is closed is not to be seen from
		// outside: flows until one comes after that.
		for done := false; !done; {
			select {
			case <-r.done:
				done = true
			case <-time.After(20 * time.Millisecond):
				n.misroute(r.previous.slot)
			}
		}
		res := n.ended(r)
		if res.Outcome != RolledBack || !strings.Contains(res.Reason, "misrouted: ") {
			t.Fatalf("%+v, %+v", res, res.Verdict)
		}
		t.Log(res.Reason)
	}
}

// New flows that the tables lead to a generation which the supervisor has taken out
// of the shift: it has written them itself, or somebody else has.
func TestShiftThatNobodyOrderedIsFound(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r := n.inVerify(n.like("serve", long))
	by := n.s.steering.(*steer.BPF)
	to, _ := by.InForce()
	to.Current = r.previous.slot
	for done := false; !done; {
		select {
		case <-r.done:
			done = true
		case <-time.After(20 * time.Millisecond):
			by.Shift(to, nil)
			if c, err := net.Dial("tcp", n.addr); err == nil {
				c.Close()
			}
		}
	}
	res := n.ended(r)
	if res.Outcome != RolledBack || !strings.Contains(res.Reason, "which no shift names, was given") {
		t.Fatalf("%+v, %+v", res, res.Verdict)
	}
	t.Log(res.Reason)
}

// A flow that reaches the candidate before any shift has named it: refused, and
// nothing has moved.
func TestFlowBeforeTheShiftIsFound(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, ready := n.inStart(t)
	var early net.Conn
	eventually(t, "a flow is at the candidate", func() bool {
		early = n.misroute(r.candidate.slot)
		counts, err := r.candidate.flows.Read()
		return err == nil && account.Sum(counts)[flows.Established] > 0
	})
	early.Close()
	ready()
	res := n.ended(r)
	if res.Outcome != Refused || !strings.Contains(res.Reason, "before the shift") {
		t.Errorf("%+v, %+v", res, res.Verdict)
	}
	if st := n.s.Status(); st.Current != 1 {
		t.Errorf("%+v", st)
	}
}
