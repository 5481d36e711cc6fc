package quic

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestReleaseBesideASocketThatCloses releases while a socket at the address of a listener
// belongs to no process, as that of a generation that is ending does for a moment. The
// release waits until it is gone. Here it is one that was sent and is not received.
func TestReleaseBesideASocketThatCloses(t *testing.T) {
	settings := demo.Settings{Datagrams: true}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("next", settings)
	if err != nil {
		t.Fatal(err)
	}
	share := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		return err
	}}
	closing, err := share.ListenPacket(context.Background(), "udp4", n.UDP.String())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := closing.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(int(fd)), nil, 0) })
	closing.Close()
	gone := make(chan struct{})
	time.AfterFunc(time.Second, func() {
		defer close(gone)
		unix.Close(pair[0])
		unix.Close(pair[1])
	})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	<-gone
}
