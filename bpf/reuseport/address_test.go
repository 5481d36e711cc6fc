package reuseport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// bindAs is bind for any address: an IPv6 one with IPV6_V6ONLY, or without.
func bindAs(t *testing.T, a Address) listener {
	t.Helper()
	if a.Addr().Is4() {
		return bind(t, a.AddrPort)
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	v6only := 1
	if a.DualStack {
		v6only = 0
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only),
		unix.Bind(fd, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}))
	if err != nil {
		t.Fatalf("bind %v: %v", a, err)
	}
	return listener{fd, a.AddrPort}
}

// labAt is one listener at an address, with its sink and one filled slot.
func labAt(t *testing.T, node *Node, number uint32, a Address, slot uint8) *lab {
	t.Helper()
	group, err := node.Group(number, a)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{node: node, group: group, slots: map[uint8]listener{}, sink: bindAs(t, a).listen(t)}
	// After it listens: the kernel would take a socket with a program of its own
	// for a stranger to the overlapping groups.
	if err := group.Attach(l.sink.fd); err != nil {
		t.Fatal(err)
	}
	if err := group.SetSink(l.sink.fd); err != nil {
		t.Fatal(err)
	}
	l.slots[slot] = bindAs(t, a).listen(t)
	if err := group.Fill(slot, ByHash, []int{l.slots[slot].fd}); err != nil {
		t.Fatal(err)
	}
	return l
}

// portForAll is free on every address of both families. It is below those that
// the kernel gives to clients: one of those may be anybody's on another address.
func portForAll(t *testing.T) uint16 {
	t.Helper()
	for {
		port := uint16(20000 + rand.IntN(10000))
		if l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}

func dial(t *testing.T, to string) {
	t.Helper()
	c, err := net.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// One port, and groups that differ in address, family or IPV6_V6ONLY alone. The
// program must know each as the kernel forms them.
func TestListenersOfOnePortAreToldApart(t *testing.T) {
	node, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	node.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	port := portForAll(t)
	at := func(addr string, dual bool) Address {
		return Address{AddrPort: netip.AddrPortFrom(netip.MustParseAddr(addr), port), DualStack: dual}
	}
	dest := func(addr string) string { return at(addr, false).String() }

	labs := map[string]*lab{}
	for i, a := range []Address{at("127.0.0.1", false), at("127.0.0.2", false), at("0.0.0.0", false), at("::1", false), at("::", false)} {
		labs[a.String()] = labAt(t, node, uint32(i+1), a, 1)
	}
	check := func(want map[string]int) {
		t.Helper()
		for name, l := range labs {
			if n := gather(t, want[name], l.slots[1])[0]; n != want[name] {
				t.Errorf("%s got %d flows, want %d", name, n, want[name])
			}
			got, err := l.group.Counters()
			if err != nil || got != (Counts{Current: uint64(want[name])}) {
				t.Errorf("counters of %s: %v, %v; want %d in current alone", name, got, err, want[name])
			}
		}
	}
	for range 3 {
		dial(t, dest("127.0.0.1"))
	}
	dial(t, dest("127.0.0.2"))
	dial(t, dest("127.0.0.3")) // the wildcard's
	dial(t, dest("127.0.0.4"))
	dial(t, dest("::1"))
	check(map[string]int{dest("127.0.0.1"): 3, dest("127.0.0.2"): 1, dest("0.0.0.0"): 2, dest("::1"): 1})
}

// While a release puts an IPv6 listener with IPv4 in the place of one without,
// both groups are there, and nothing but the socket itself tells them apart.
func TestDualStackBesideIPv6Only(t *testing.T) {
	node, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	port := portForAll(t)
	any6 := netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	only := labAt(t, node, 1, Address{AddrPort: any6}, 1)
	dual := labAt(t, node, 2, Address{AddrPort: any6, DualStack: true}, 2)
	node.SetShift(1, Shift{Current: 1, Other: 1, Salt: 1})
	node.SetShift(2, Shift{Current: 2, Other: 2, Salt: 1})
	for range 5 {
		dial(t, netip.AddrPortFrom(netip.IPv6Loopback(), port).String())
		dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	}
	// IPv4 has one place to go. IPv6 goes where the kernel's look-up finds it.
	got := gather(t, 10, only.slots[1], dual.slots[2])
	inOnly, inDual := got[0], got[1]
	if inOnly+inDual != 10 || inDual < 5 {
		t.Errorf("%d flows in the IPv6-only listener and %d in the other, of 5 by IPv6 and 5 by IPv4", inOnly, inDual)
	}
	none, err := node.Counters(NoSlot)
	if err != nil || none != (Counts{}) {
		t.Errorf("counters without a slot: %v, %v; want none", none, err)
	}
	// With the one gone the other is found on its own.
	unix.Close(only.slots[1].fd)
	unix.Close(only.sink.fd)
	if err := only.group.Remove(); err != nil {
		t.Fatal(err)
	}
	dial(t, netip.AddrPortFrom(netip.IPv6Loopback(), port).String())
	if n := gather(t, 1, dual.slots[2])[0]; n != 1 {
		t.Errorf("the listener that is left got %d flows, want 1", n)
	}
}

func TestListenerComesAndGoes(t *testing.T) {
	l := newLab(t, 1)
	l.node.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	if _, err := l.node.Group(2, Address{AddrPort: l.sink.addr}); err == nil {
		t.Error("two listeners got one address")
	}
	if _, err := l.node.Group(2, Address{AddrPort: l.sink.addr, UDP: true}); err != nil {
		t.Errorf("UDP on the same address: %v", err)
	}
	again, err := l.node.Group(1, Address{AddrPort: l.sink.addr})
	if err != nil {
		t.Fatal(err)
	}
	l.connect(t, 2)
	if got, err := again.Counters(); err != nil || got[Current] != 2 {
		t.Errorf("counters of the same listener: %v, %v; want 2 current", got, err)
	}
	l.expect(t, map[int]int{1: 2})

	next := labOn(t, l.node, 3, 1) // beside it, in the slot of the same generation
	next.connect(t, 2)
	next.expect(t, map[int]int{1: 2})

	if err := l.group.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("tcp4", l.sink.addr.String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to a listener that was removed: %v, want refused", err)
	}
	if none, err := l.node.Counters(NoSlot); err != nil || none != (Counts{Lost: 1}) {
		t.Errorf("counters without a slot: %v, %v; want 1 lost", none, err)
	}
	next.connect(t, 1)
	next.expect(t, map[int]int{1: 1})
}

// A process that comes after finds everything where it was, and its program
// takes over.
func TestReopen(t *testing.T) {
	dir := bpffs(t)
	first, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := labOn(t, first, 7, 1, 2)
	first.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	l.connect(t, 3)
	want, err := l.group.Cookies(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	l.connect(t, 1) // nobody is there, and steering goes on

	// As one of before this map was there would have left it.
	if err := os.Remove(filepath.Join(dir, layout, steerMapMoves)); err != nil {
		t.Fatal(err)
	}
	if l.node, err = Reopen(dir); err != nil {
		t.Fatal(err)
	}
	defer l.node.Close()
	if got := l.node.Shift(All); got.Current != 1 {
		t.Errorf("shift %+v", got)
	}
	here, elsewhere := Address{AddrPort: l.sink.addr}, Address{AddrPort: l.sink.addr, UDP: true}
	for address, want := range map[Address]uint32{here: 7, elsewhere: 0} {
		if number, err := l.node.Number(address); number != want || err != nil {
			t.Errorf("the number of %+v is %d, %v; want %d", address, number, err, want)
		}
	}
	if taken, err := l.node.Numbers(); len(taken) != 1 || !taken[7] || err != nil {
		t.Errorf("numbers that are taken: %v, %v; want 7 alone", taken, err)
	}
	if l.group, err = l.node.Group(7, here); err != nil {
		t.Fatal(err)
	}
	if err := l.group.Attach(l.sink.fd); err != nil {
		t.Fatal(err)
	}
	if got, err := l.group.Cookies(1); err != nil || len(got) != 1 || got[0] != want[0] {
		t.Errorf("cookies %v, %v; want %v", got, err, want)
	}
	l.fill(t, 3) // must not take the place of what is there
	l.node.SetShift(All, Shift{Current: 2, Other: 2, Salt: 1})
	l.connect(t, 2)
	l.node.SetShift(All, Shift{Current: 3, Other: 3, Salt: 1})
	l.connect(t, 1)
	l.expect(t, map[int]int{1: 4, 2: 2, 3: 1})
	l.counted(t, map[int]Counts{1: {Current: 4}, 2: {Current: 2}, 3: {Current: 1}})

	if err := l.node.Unpin(); err != nil {
		t.Fatal(err)
	}
	if _, err := Reopen(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reopen after the pins are gone: %v, want os.ErrNotExist", err)
	}
}

// A socket whose slot an earlier process has emptied, or had not written the place of
// when it died, is in the table still. It is put into a slot again all the same.
func TestFillAfterEmpty(t *testing.T) {
	dir := bpffs(t)
	first, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := labOn(t, first, 1, 1, 2)
	first.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	l.connect(t, 2)
	if err := first.Empty(1); err != nil {
		t.Fatal(err)
	}
	if first.Armed(1) || !first.Armed(2) {
		t.Error("armed are not the others alone")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if l.node, err = Reopen(dir); err != nil {
		t.Fatal(err)
	}
	defer l.node.Close()
	if l.group, err = l.node.Group(1, Address{AddrPort: l.sink.addr}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is where it belongs
		if err := l.group.Fill(1, ByHash, []int{l.slots[1].fd}); err != nil {
			t.Fatal(err)
		}
		l.connect(t, 1)
	}
	l.expect(t, map[int]int{1: 4})
	if got, err := l.group.Cookies(2); err != nil || len(got) != 1 || got[0] == 0 {
		t.Errorf("the other slot has %v, %v", got, err)
	}
}

// bpffs is a directory of a BPF file system of the test's own.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	return dir
}

// All at once, as a supervisor numbers them: the kernel's store of elements runs
// empty on the way.
func TestAsManyListenersAsThereAreNumbers(t *testing.T) {
	node, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	at := func(n uint32) Address {
		return Address{AddrPort: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)}), 80)}
	}
	for n := uint32(1); n <= MaxListeners; n++ {
		if _, err := node.Group(n, at(n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := node.Group(1, at(MaxListeners+1)); err == nil {
		t.Error("one address more than there are numbers was accepted")
	}
}

func TestRangesAreUsedAgain(t *testing.T) {
	var r ranges
	taken := map[uint32]uint32{}
	for round := range 3 {
		for used := uint32(0); used < MaxSockets; used += 64 {
			first, ok := r.take(64)
			if !ok {
				t.Fatalf("round %d: nothing left with %d used", round, used)
			}
			if _, twice := taken[first]; twice {
				t.Fatalf("round %d: %d was handed out twice", round, first)
			}
			taken[first] = 64
		}
		if first, ok := r.take(1); ok {
			t.Fatalf("round %d: %d was handed out from a full array", round, first)
		}
		for first, n := range taken {
			r.give(first, n)
			delete(taken, first)
		}
	}
	if r.claim(MaxSockets-1, 2) || r.claim(MaxSockets+1, 1) {
		t.Error("indices past the end were claimed")
	}
	if !r.claim(5, 2) || r.claim(6, 1) {
		t.Error("an index was claimed twice, or could not be")
	}
}
