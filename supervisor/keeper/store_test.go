package keeper

import (
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wantHeld wants a keeper to hold these texts, under their names, and nothing else.
func wantHeld(t *testing.T, c *Client, want map[string]string) {
	t.Helper()
	all, err := c.All()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for name, fd := range all {
		got[name] = read(t, fd)
		unix.Close(fd)
	}
	if !maps.Equal(got, want) {
		t.Errorf("held are %q, want %q", got, want)
	}
}

// What a keeper that was killed had is with the next one: under names that no store would
// take, under two names at once, in place of what it had before; and what was dropped is not.
func TestStoreOutlivesTheKeeper(t *testing.T) {
	m := manage(t, 100, time.Minute)
	c := m.connect()
	long := strings.Repeat("x", 300)
	twice := memfd(t, "twice")
	put := func(fds map[string]int) {
		t.Helper()
		if err := c.Put(fds); err != nil {
			t.Fatal(err)
		}
	}
	put(map[string]int{"1/socket/a:b/0": memfd(t, "colon"), "größe": memfd(t, "letters"), long: memfd(t, "long"), "one": twice, "other": twice, "changed": memfd(t, "before"), "dropped": memfd(t, "dropped")})
	put(map[string]int{"changed": memfd(t, "after"), "one": twice})
	if err := c.Drop([]string{"dropped"}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"1/socket/a:b/0": "colon", "größe": "letters", long: "long", "one": "twice", "other": "twice", "changed": "after"}
	for round := range 3 {
		m.eventually("the store has everything", func() bool { return len(m.fds) == 1+5 }) // and the list of names
		m.kill()
		m.start()
		c = m.connect()
		wantHeld(t, c, want)
		if round == 0 { // an open file stays as long as it has a name
			if err := c.Drop([]string{"one"}); err != nil {
				t.Fatal(err)
			}
			delete(want, "one")
		}
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(m.names, []string{storedIndex}) {
		t.Errorf("after the end the store has %q", m.names)
	}
}

// putListener gives a keeper a socket that listens, and returns its address.
func putListener(t *testing.T, c *Client, name string) (address string) {
	t.Helper()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = c.Put(map[string]int{name: int(fd)}) })
	if err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

func listens(address string) bool {
	conn, err := net.Dial("tcp4", address)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// A copy that is dropped is closed when Drop returns, in the store too.
func TestDropClosesInTheStore(t *testing.T) {
	m := manage(t, 100, time.Minute)
	c := m.connect()
	address := putListener(t, c, "socket")
	m.eventually("the store has it", func() bool { return len(m.fds) == 2 })
	if !listens(address) {
		t.Error("nobody has what was put")
	}
	if err := c.Drop([]string{"socket"}); err != nil {
		t.Fatal(err)
	}
	if listens(address) {
		t.Error("what was dropped listens still")
	}
}

// A manager that is busy keeps nobody waiting for long, and does later what it was told.
func TestManagerThatIsBusy(t *testing.T) {
	m := manage(t, 100, time.Millisecond)
	c := m.connect()
	address := putListener(t, c, "socket")
	m.eventually("the store has it", func() bool { return len(m.fds) == 2 })
	m.mu.Lock()
	err := c.Drop([]string{"socket"})
	if err == nil && !listens(address) {
		t.Error("a manager that is busy has closed it")
	}
	m.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	m.eventually("the manager does it later", func() bool { return !listens(address) })
}

// A store without room is said to be so, once, and that it has everything again.
func TestStoreWithoutRoom(t *testing.T) {
	m := manage(t, 4, time.Minute) // the list of names, and the probe for room
	c := m.connect()
	if err := c.Put(map[string]int{"a": memfd(t, "a"), "b": memfd(t, "b")}); err != nil {
		t.Fatal(err)
	}
	if err := c.Drop([]string{"none"}); err != nil { // which waits for the store
		t.Fatal(err)
	}
	m.mu.Lock()
	if len(m.said) > 0 {
		t.Errorf("two fit, and yet %q", m.said)
	}
	m.mu.Unlock()
	for _, name := range []string{"c", "d"} {
		if err := c.Put(map[string]int{name: memfd(t, name)}); err != nil {
			t.Fatal(err)
		}
	}
	m.eventually("it is said", func() bool { return len(m.said) == 1 && m.said[0] == "told: "+errFull.Error() })
	wantHeld(t, c, map[string]string{"a": "a", "b": "b", "c": "c", "d": "d"})
	if err := c.Drop([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	m.eventually("there is room", func() bool { return len(m.said) == 2 && m.said[1] == "told: <nil>" })
	m.eventually("it has what there is", func() bool { return len(m.fds) == 3 }) // without the probe
	m.kill()
	m.start()
	wantHeld(t, m.connect(), map[string]string{"c": "c", "d": "d"})
}

// Without a store (FileDescriptorStoreMax=0) a keeper is one as any other, and says so.
func TestManagerWithoutStore(t *testing.T) {
	m := manage(t, 0, time.Minute)
	c := m.connect()
	if err := c.Put(map[string]int{"a": memfd(t, "a")}); err != nil {
		t.Fatal(err)
	}
	wantHeld(t, c, map[string]string{"a": "a"})
	m.eventually("it is said", func() bool { return len(m.said) == 1 })
}

// The list of names is the last one that was written whole.
func TestIndexThatWasTorn(t *testing.T) {
	x, err := newIndex()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(x.fd)
	if _, err := (&index{fd: x.fd}).read(); err == nil {
		t.Error("nothing was written, and it is read")
	}
	for number := range uint64(5) {
		if err := x.write(map[string]uint64{"name": number}); err != nil {
			t.Fatal(err)
		}
		again := &index{fd: x.fd}
		if names, err := again.read(); err != nil || names["name"] != number || again.writes != x.writes {
			t.Errorf("written %d, read %v, %v", number, names, err)
		}
	}
	place := int64(x.writes%2) * indexPlace
	for _, octet := range []int64{0, 4, 12, 16, indexHead} {
		was := make([]byte, 1)
		unix.Pread(x.fd, was, place+octet)
		unix.Pwrite(x.fd, []byte{was[0] ^ 0x80}, place+octet)
		if names, err := (&index{fd: x.fd}).read(); err != nil || names["name"] != 3 {
			t.Errorf("octet %d is damaged: %v, %v; want the one before", octet, names, err)
		}
		unix.Pwrite(x.fd, was, place+octet)
	}
}

// A keeper of a service manager's that is killed is awaited, not replaced. What was put and
// dropped while there was none it has and has not, and it ends with its owner's order.
func TestManagedKeeperIsAwaited(t *testing.T) {
	m := manage(t, 100, time.Minute)
	lost := make(chan error, 10)
	k, left, err := Open(m.dir, func(err error) { lost <- err })
	if err != nil || len(left) != 0 {
		t.Fatalf("%v, %v", left, err)
	}
	defer k.Close(true)
	k.Put(map[string]int{"stays": memfd(t, "stays"), "goes": memfd(t, "goes")})
	m.kill()
	k.Drop("goes")
	k.Put(map[string]int{"comes": memfd(t, "comes")})
	time.Sleep(200 * time.Millisecond) // for one of its own, if it did not wait
	m.start()
	for err := errEnds; err != nil; {
		select {
		case err = <-lost:
		case <-time.After(time.Minute):
			t.Fatal("no other keeper is said to be there")
		}
	}
	c := m.connect()
	if pid := pidOf(t, c); pid != m.keeper.Process.Pid {
		t.Errorf("process %d answers, and the manager's is %d", pid, m.keeper.Process.Pid)
	}
	wantHeld(t, c, map[string]string{"stays": "stays", "comes": "comes"})
}
