package iter

import (
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

func TestMain(m *testing.M) {
	need.RootForAll("BPF iterators")
	os.Exit(m.Run())
}

// listen opens a listening socket and returns its cookie.
func listen(t testing.TB) (net.Listener, uint64) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // the iterator sees TCP's sockets
	l, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	raw.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) })
	if err != nil {
		t.Fatal(err)
	}
	return l, cookie
}

// Half-open connections need a link that loses packets: tests/packetpath has them.
func TestAcceptQueues(t *testing.T) {
	q, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	one, oneCookie := listen(t)
	_, twoCookie := listen(t)
	_, otherCookie := listen(t)
	for range 5 {
		c, err := net.Dial("tcp4", one.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	got, err := q.Read([]uint64{oneCookie, twoCookie})
	backlog := got[oneCookie].Backlog
	if err != nil || len(got) != 2 || backlog < 5 || got[oneCookie] != (Queue{ToAccept: 5, Backlog: backlog}) || got[twoCookie] != (Queue{Backlog: backlog}) {
		t.Errorf("%v, %v", got, err)
	}

	// A listener that has gone is missing, and what was asked before is forgotten.
	one.Close()
	got, err = q.Read([]uint64{oneCookie, otherCookie})
	if err != nil || len(got) != 1 || got[otherCookie] != (Queue{Backlog: backlog}) {
		t.Errorf("after a close: %v, %v", got, err)
	}
	if got, err := q.Read(nil); err != nil || len(got) != 0 {
		t.Errorf("nothing asked: %v, %v", got, err)
	}
}

// Thousands at once, one of them twice, leave nothing behind.
func TestManyAreAskedAndForgotten(t *testing.T) {
	q, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	_, cookie := listen(t)
	cookies := []uint64{cookie, cookie}
	for i := range uint64(10000) {
		cookies = append(cookies, 1<<60+i)
	}
	for range 3 {
		got, err := q.Read(cookies)
		if err != nil || len(got) != 1 || got[cookie].ToAccept != 0 {
			t.Fatalf("%v, %v", got, err)
		}
		var key uint64
		var mark uint8
		if all := q.objs.Wanted.Iterate(); all.Next(&key, &mark) {
			t.Fatalf("%#x is still asked for", key)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	q, err := Open("")
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	var cookies []uint64
	for range 1000 {
		_, c := listen(b)
		cookies = append(cookies, c)
	}
	for _, n := range []int{3, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				if _, err := q.Read(cookies[:n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
