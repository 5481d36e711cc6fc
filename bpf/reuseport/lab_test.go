package reuseport

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listener is one bound and listening member of a group.
type listener struct {
	fd   int
	addr netip.AddrPort
}

// bind makes a socket of the group at addr; port 0 starts a new group.
func bind(t *testing.T, addr netip.AddrPort) listener {
	t.Helper()
	family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return listener{fd, netip.AddrPortFrom(addr.Addr(), uint16(got.(*unix.SockaddrInet4).Port))}
}

func (l listener) listen(t *testing.T) listener {
	t.Helper()
	if err := unix.Listen(l.fd, 4096); err != nil {
		t.Fatal(err)
	}
	return l
}

// queued accepts what waits on the listener and returns how many that were.
func (l listener) queued(t *testing.T) int {
	t.Helper()
	for n := 0; ; n++ {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EAGAIN) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		// A reset frees the client's port at once; ten thousand connections in
		// TIME_WAIT would not leave enough for the next test.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(fd)
	}
}

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// lab is one group with a sink and as many filled slots as asked for.
type lab struct {
	node  *Node
	group *Group
	sink  listener
	slots map[uint8]listener
}

func newLab(t *testing.T, slots ...uint8) *lab {
	t.Helper()
	node, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	return labOn(t, node, 1, slots...)
}

func labOn(t *testing.T, node *Node, number uint32, slots ...uint8) *lab {
	t.Helper()
	l := &lab{node: node, slots: map[uint8]listener{}}
	l.sink = bind(t, loopback)
	group, err := node.Group(number, Address{AddrPort: l.sink.addr})
	if err != nil {
		t.Fatal(err)
	}
	l.group = group
	if err := group.Attach(l.sink.fd); err != nil {
		t.Fatal(err)
	}
	l.sink.listen(t)
	if err := group.SetSink(l.sink.fd); err != nil {
		t.Fatal(err)
	}
	for _, s := range slots {
		l.fill(t, s)
	}
	return l
}

func (l *lab) fill(t *testing.T, slot uint8) {
	t.Helper()
	l.slots[slot] = bind(t, l.sink.addr).listen(t)
	if err := l.group.Fill(slot, ByHash, []int{l.slots[slot].fd}); err != nil {
		t.Fatal(err)
	}
}

// connect opens n connections and leaves them open until the test ends.
func (l *lab) connect(t *testing.T, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp4", l.sink.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

// gather accepts what waits on some listeners, until there are as many as are
// wanted in all: the last segment of a handshake may be on its way when connect
// returns. It returns how many each had.
func gather(t *testing.T, want int, from ...listener) []int {
	t.Helper()
	got, all := make([]int, len(from)), 0
	for late := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		for i, l := range from {
			n := l.queued(t)
			got[i] += n
			all += n
		}
		if all >= want || time.Now().After(late) {
			return got
		}
	}
}

// holds waits until as many finished connections wait on the listener.
func (l listener) holds(t *testing.T, want int) {
	t.Helper()
	for late := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		// Of a listening socket this is the length of its accept queue.
		info, err := unix.GetsockoptTCPInfo(l.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		if int(info.Unacked) == want {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%d connections wait, want %d", info.Unacked, want)
		}
	}
}

// expect compares what waits at each slot, the sink under NoSlot.
func (l *lab) expect(t *testing.T, want map[int]int) {
	t.Helper()
	from, slots, all := []listener{l.sink}, []int{NoSlot}, 0
	for slot, s := range l.slots {
		from, slots = append(from, s), append(slots, int(slot))
	}
	for _, n := range want {
		all += n
	}
	for i, got := range gather(t, all, from...) {
		if got != want[slots[i]] {
			t.Errorf("slot %d got %d flows, want %d (slot %d is the sink)", slots[i], got, want[slots[i]], NoSlot)
		}
	}
}

// counted compares every counter of a node with one group, named or not.
func (l *lab) counted(t *testing.T, want map[int]Counts) {
	t.Helper()
	var all Counts
	for slot := range Slots + 1 {
		got, err := l.node.Counters(slot)
		if err != nil {
			t.Fatal(err)
		}
		if got != want[slot] {
			t.Errorf("counters of slot %d: %v, want %v", slot, got, want[slot])
		}
		all.add(want[slot])
	}
	if got, err := l.group.Counters(); err != nil || got != all {
		t.Errorf("counters of the listener: %v, %v; want %v", got, err, all)
	}
}
