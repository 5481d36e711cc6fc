package supervisor

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

// What a generation that was adopted still listens on is no stranger's, though nobody has
// a copy and, in the moment in which the generation closes it, no process either.
func TestStoodSocketsAreNoStrangers(t *testing.T) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	l, err := plain.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	if err := raw.Control(func(fd uintptr) { cookie, err = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Listeners: []config.Listener{{Name: "web", Address: l.Addr().String(), Protocol: config.HTTP, Workers: 1}}}
	g := left(t, 1, Draining, sleeper())
	s := &Supervisor{generations: []*generation{g}}
	if err := s.refuseStrangers(c); err == nil {
		t.Error("a stranger's socket is taken for ours")
	}
	g.stood = map[string][]uint64{"web": {cookie}}
	if err := s.refuseStrangers(c); err != nil {
		t.Error(err)
	}
}
