package quic

import (
	"bytes"
	"net"
	"slices"
	"syscall"
	"testing"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/tests/node"
)

// TestDroppedDatagrams: datagrams that were nobody's are counted to the last, and those
// that found no room at a generation, also when it has ended.
func TestDroppedDatagrams(t *testing.T) {
	const strangers = 7
	s := startSite(t, siteSettings{})
	send := func(to string, datagram []byte, n int) {
		c, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range n {
			if _, err := c.Write(datagram); err != nil {
				t.Fatal(err)
			}
		}
	}
	status := func() supervisor.Status {
		st, err := admin.Dial(s.Socket()).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	listener := func(st supervisor.Status, name string) supervisor.ListenerStatus {
		i := slices.IndexFunc(st.Listeners, func(l supervisor.ListenerStatus) bool { return l.Name == name })
		if i < 0 {
			t.Fatalf("there is no listener %s: %+v", name, st.Listeners)
		}
		return st.Listeners[i]
	}
	send(s.HTTPS.String(), bytes.Repeat([]byte{0x40}, 100), strangers) // short headers of no connection
	st := status()
	if l := listener(st, "web.udp"); l.SinkDropped != strangers || l.Dropped != 0 {
		t.Errorf("%d strangers: %+v", strangers, l)
	}
	if l := listener(st, "dgram.udp"); l.SinkDropped+l.Dropped != 0 {
		t.Errorf("nothing came to it: %+v", l)
	}

	pid := st.Generations[0].PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT) // if the test fails
	var full uint64
	node.Eventually(t, "a full socket has let datagrams fall", func() bool {
		send(s.udp, make([]byte, 60_000), 20)
		q := status().Generations[0].Datagrams["dgram.udp"]
		full = q.Dropped
		return q.Dropped > 0 && q.Octets > 0
	})
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.release(t, "release")
	node.Eventually(t, "the generation has ended", func() bool { return len(status().Generations) == 1 })
	if l := listener(status(), "dgram.udp"); l.Dropped < full {
		t.Errorf("%d datagrams were dropped, and %d are counted now: %+v", full, l.Dropped, l)
	}
}
