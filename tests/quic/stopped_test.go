package quic

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestDatagramToAStoppedProcess sends the first datagram of a flow to a process that is
// stopped, and kills it. The datagram is lost with the socket that had queued it, as
// the kernel's tables show, and no other: the flow's next one is answered, and so is a
// flow that begins later.
func TestDatagramToAStoppedProcess(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{Datagrams: true})
	first, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	old := first.Generations[0]
	p, err := demo.OpenProcess(old.PID, n.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	dial := func() (net.Conn, demo.Op) {
		c, err := net.Dial("udp", n.UDP.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c, demo.Op{Kind: demo.UDP, Dialled: time.Now(), Err: errors.New("no answer"),
			Flow: demo.Flow{Client: c.LocalAddr().(*net.UDPAddr).AddrPort(), Server: n.UDP}}
	}
	ask := func(c net.Conn) {
		t.Helper()
		b := make([]byte, 10)
		c.SetReadDeadline(time.Now().Add(node.Enough))
		c.Write([]byte("answered"))
		if k, err := c.Read(b); err != nil || string(b[:k]) != "answered" {
			t.Errorf("%q, %v", b[:k], err)
		}
	}
	lost, failed := dial()
	lost.Write([]byte("lost"))
	death, err := demo.Kill(old.PID, n.PID(), n.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "another generation serves", func() bool {
		s, err := n.Status(t.Context())
		return err == nil && s.Current > old.ID && s.PIDOf(old.ID) == 0
	})
	later, fine := dial()
	ask(later)
	slots, err := reuseport.RememberedIn(supervisor.PinsOf(filepath.Join(n.Dir, "run")))
	if err != nil {
		t.Fatal(err)
	}
	given := map[demo.Flow]int{}
	for f, slot := range slots {
		given[demo.Flow(f)] = int(slot)
	}
	death.Given(given, old.Slot)
	failed.End, fine.End = time.Now(), time.Now()
	if !death.Explains(failed) {
		t.Errorf("%+v is not known as the dead process's: %v", failed, slots)
	}
	if death.Explains(fine) {
		t.Errorf("%+v is believed to be the dead process's: %v", fine, slots)
	}
	ask(lost)
}
