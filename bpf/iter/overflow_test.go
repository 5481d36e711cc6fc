package iter

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A listener whose accept queue is full drops SYNs, and they are counted.
func TestOverflow(t *testing.T) {
	q, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	one, cookie := listen(t)
	raw, err := one.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	const backlog = 2
	raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), backlog) })
	if err != nil {
		t.Fatal(err)
	}
	for range backlog + 1 {
		c, err := net.Dial("tcp4", one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	read := func() Queue {
		got, err := q.Read([]uint64{cookie})
		if err != nil {
			t.Fatal(err)
		}
		return got[cookie]
	}
	if got := read(); got != (Queue{ToAccept: backlog + 1, Backlog: backlog}) {
		t.Fatalf("full: %+v", got)
	}
	// The first SYN is on its way when connect returns.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at := one.Addr().(*net.TCPAddr)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: at.Port, Addr: [4]byte{127, 0, 0, 1}}); err != unix.EINPROGRESS {
		t.Fatalf("a full queue: %v", err)
	}
	got := read()
	for end := time.Now().Add(30 * time.Second); got.Dropped == 0 && time.Now().Before(end); got = read() {
		time.Sleep(time.Millisecond)
	}
	if got.ToAccept != backlog+1 || got.Dropped == 0 {
		t.Errorf("one more: %+v", got)
	}
}
