package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// start runs a keeper as a supervisor would: this test binary becomes one.
func start(t *testing.T) (c *Client, path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "keeper") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "keeper.sock")
	if c, err = Start(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c, err := Connect(path); err == nil {
			c.Quit()
			c.Close()
		}
		c.Close()
	})
	return c, path
}

func memfd(t *testing.T, text string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(fd, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
	return fd
}

func read(t *testing.T, fd int) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestKeepsWhatItIsGiven(t *testing.T) {
	c, path := start(t)
	given := map[string]int{}
	for i := range 3*batch + 1 {
		given[fmt.Sprintf("n%d", i)] = memfd(t, fmt.Sprint(i))
	}
	if err := c.Put(given); err != nil {
		t.Fatal(err)
	}
	for _, fd := range given {
		unix.Close(fd)
	}
	if err := c.Put(map[string]int{"n0": memfd(t, "again")}); err != nil {
		t.Fatal(err)
	}
	if err := c.Drop([]string{"n1", "never"}); err != nil {
		t.Fatal(err)
	}
	c.Close() // as a supervisor that dies

	next, err := Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	all, err := next.All()
	if err != nil || len(all) != len(given)-1 {
		t.Fatalf("%d descriptors, %v; want %d", len(all), err, len(given)-1)
	}
	for name, fd := range all {
		want := strings.TrimPrefix(name, "n")
		if name == "n0" {
			want = "again"
		}
		if got := read(t, fd); got != want {
			t.Errorf("%s is %q", name, got)
		}
		unix.Close(fd)
	}
}

// A copy that is dropped is closed when Drop returns: the last one of a listening
// socket hands its queue on.
func TestDropCloses(t *testing.T) {
	c, _ := start(t)
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = c.Put(map[string]int{"socket": int(fd)}) })
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatalf("the keeper's copy does not listen: %v", err)
	}
	conn.Close()
	if err := c.Drop([]string{"socket"}); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp4", address); err == nil {
		conn.Close()
		t.Error("it listens still")
	}
}

func TestQuit(t *testing.T) {
	c, path := start(t)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { Watch(path, stop); close(ended) }()
	if err := Serve(path); err == nil {
		t.Error("two keepers at one path")
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("its end was not noticed")
	}
	if err := c.Put(nil); err != nil {
		t.Errorf("nothing to ask, and yet %v", err)
	}
	if c.Put(map[string]int{"x": 0}) == nil {
		t.Error("a keeper that has gone has answered")
	}
}

// What is no request is refused in words, and harms nothing.
func TestNonsense(t *testing.T) {
	c, path := start(t)
	if err := c.Put(map[string]int{"kept": memfd(t, "kept")}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"version":9,"op":"all"}`, `{"version":1,"op":"give"}`, `{"version":1,"op":"put","names":["a"]}`, strings.Repeat("x", maxMessage)} {
		conn, err := net.DialUnix("unixpacket", nil, address(path))
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(text))
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if m, _, err := receive(conn); text != "" && (err != nil || m.Error == "") {
			t.Errorf("%.30q: %+v, %v", text, m, err)
		}
		conn.Close()
	}
	all, err := c.All()
	if err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}
