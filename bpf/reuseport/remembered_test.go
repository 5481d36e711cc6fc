package reuseport

import (
	"maps"
	"net"
	"testing"
	"time"
)

// Of each flow another process reads where its latest datagram went, also where that
// was to a slot which is dead by now.
func TestRememberedFlowsAreReadFromOutside(t *testing.T) {
	dir := bpffs(t)
	l := newDatagramLabIn(t, dir, time.Minute, 1, 2)
	flow := func(c net.Conn) Flow { return Flow{c.LocalAddr().(*net.UDPAddr).AddrPort(), l.address} }
	want := func(when string, want map[Flow]uint8) {
		t.Helper()
		got, err := RememberedIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	want("before the first", map[Flow]uint8{})
	old, lost, late := l.client(), l.client(), l.client()
	l.send(old, []byte("one"))
	l.send(lost, []byte("one"))
	l.shift(2)
	l.send(late, []byte("one"))
	want("after a shift", map[Flow]uint8{flow(old): 1, flow(lost): 1, flow(late): 2})
	l.kill(1)
	if err := l.node.EmptyDatagrams(1); err != nil {
		t.Fatal(err)
	}
	l.send(old, []byte("again"))
	want("after a death", map[Flow]uint8{flow(old): 2, flow(lost): 1, flow(late): 2})
	if _, err := RememberedIn(t.TempDir()); err == nil {
		t.Error("read where nothing is pinned")
	}
}
