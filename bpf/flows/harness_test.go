package flows

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/testnet"
)

// asServer makes the test binary accept one connection on descriptor 3, say so,
// and end when its input does, with the connection open.
const asServer = "accept-and-end"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asServer {
		if _, _, err := unix.Accept(3); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("accepted")
		os.Stdin.Read(make([]byte, 1))
		return
	}
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		fmt.Println("SKIP: the account of flows needs root")
		return
	}
	os.Exit(m.Run())
}

// own is this process's cgroup.
func own(t testing.TB) string {
	t.Helper()
	_, own := need.Cgroup2(t)
	return own
}

func open(t testing.TB, dir string) *Flows {
	t.Helper()
	f, err := Open(own(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// server is a listening socket of a host, marked for a generation.
type server struct {
	t    *testing.T
	host *testnet.Host
	fd   int
	addr netip.AddrPort
}

const listenerNumber = 5

// serve makes a listening socket on the host, in a reuseport group when port is
// that of another, and marks it; generation 0 leaves it without a mark.
func serve(t *testing.T, f *Flows, host *testnet.Host, port int, generation uint64) *server {
	t.Helper()
	s := &server{t: t, host: host}
	err := host.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		if err := unix.Bind(s.fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(s.fd)
		if err != nil {
			return err
		}
		s.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
		if generation != 0 {
			err = errors.Join(f.Account(generation, listenerNumber), f.Mark(s.fd, generation, listenerNumber))
		}
		return errors.Join(err, unix.Listen(s.fd, 1024))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func (s *server) close() {
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

func (s *server) dial() net.Conn {
	s.t.Helper()
	c, err := s.host.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *server) accept() int {
	s.t.Helper()
	fd, _, err := unix.Accept(s.fd)
	if err != nil {
		s.t.Fatal(err)
	}
	return fd
}

// pair is a flow, with both its ends.
func (s *server) pair() (client net.Conn, conn int) { c := s.dial(); return c, s.accept() }

// want waits until the account says so: the client knows of a finished handshake
// before the server's kernel does.
func want(t *testing.T, f *Flows, generation uint64, counts Counts) {
	t.Helper()
	var got Counts
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		var err error
		if got, err = f.Counts(generation, listenerNumber); err != nil {
			t.Fatal(err)
		}
		if got == counts {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for fact := range Facts {
		if got[fact] != counts[fact] {
			t.Errorf("generation %d: %s is %d, want %d", generation, Fact(fact), got[fact], counts[fact])
		}
	}
}

// segment sends one TCP segment without any connection behind it.
func segment(host *testnet.Host, to netip.AddrPort, from uint16, flags byte) error {
	return host.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var b [20]byte
		binary.BigEndian.PutUint16(b[0:], from)
		binary.BigEndian.PutUint16(b[2:], to.Port())
		binary.BigEndian.PutUint32(b[4:], 12345)
		b[12], b[13] = 5<<4, flags
		binary.BigEndian.PutUint16(b[14:], 65535)
		sum := uint32(0x7f00+0x0001)*2 + 6 + 20 // the pseudo header: loopback to loopback, TCP, 20 octets
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
		return unix.Sendto(fd, b[:], 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
)
