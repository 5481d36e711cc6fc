package steer

import (
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// Whatever a listener's sockets let fall is counted: of UDP every datagram that is
// nobody's, at the sink, and what finds no room at a generation's socket.
func TestDroppedDatagramsAreCounted(t *testing.T) {
	const slot, room = 3, 4096
	dgram := config.Listener{Name: "dgram", Address: fmt.Sprintf("127.0.0.4:%d", port(t)), Protocol: config.UDP, Workers: 1, WorkerChoice: config.ByHash, IdleTimeout: time.Minute}
	s, err := reopen(t, pins(t), false, dgram)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	missed := func() uint64 {
		all, _ := s.Describe(0)
		return all[0].Missed
	}
	client, err := net.Dial("udp", dgram.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	send := func(n int) {
		for range n {
			if _, err := client.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	send(5)
	if n := missed(); n != 5 {
		t.Errorf("the sink has let %d datagrams fall, want 5", n)
	}

	c := &config.Config{Node: config.Node{ServerID: 7}, Listeners: []config.Listener{dgram}}
	sockets, err := s.BindDatagrams(c)
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	if err := unix.SetsockoptInt(sockets["dgram"][0].FD, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
		t.Fatal(err)
	}
	if err := s.FillDatagrams(slot, c, sockets); err != nil {
		t.Fatal(err)
	}
	s.Shift(reuseport.Shift{Current: slot, Other: slot, Salt: 1}, nil)
	if client, err = net.Dial("udp", dgram.Address); err != nil { // another flow: the first is the sink's
		t.Fatal(err)
	}
	defer client.Close()
	send(100)
	all, err := s.Buffers(slot)
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for b := make([]byte, 2000); ; read++ {
		if _, _, err := unix.Recvfrom(sockets["dgram"][0].FD, b, unix.MSG_DONTWAIT); err != nil {
			break
		}
	}
	got := all["dgram.udp"]
	if read == 0 || read == 100 || int(got.Dropped) != 100-read || got.Queued == 0 || got.Room != 2*room {
		t.Errorf("%+v of %v; %d of 100 were in the queue", got, all, read)
	}
	if n := missed(); n != 5 {
		t.Errorf("the sink has let %d datagrams fall, want 5 as before", n)
	}
}

// Handshakes that find the sink's queue full are counted, over the sinks that follow
// each other.
func TestHandshakesBeyondTheSinksBacklogAreCounted(t *testing.T) {
	web := listens("web", fmt.Sprintf("127.0.0.4:%d", port(t)))
	web.Backlog = 1
	s, err := reopen(t, pins(t), false, web)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	missed := func() uint64 {
		all, _ := s.Describe(0)
		return all[0].Missed
	}
	for range 2 { // one more is let in than the backlog says
		c, err := net.Dial("tcp", web.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if n := missed(); n != 0 {
		t.Errorf("%d segments were dropped before the queue was full", n)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	addr := web.AddrPort()
	// The SYN is dropped, or the last ACK: whatever it is, within this call or soon.
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != unix.EINPROGRESS {
		t.Fatal(err)
	}
	waitFor(t, "a dropped segment is counted", func() bool { return missed() > 0 })
	before := missed()
	if err := s.renewSink(s.all()[0]); err != nil {
		t.Fatal(err)
	}
	if n := missed(); n < before {
		t.Errorf("%d segments were dropped, and %d before the sink was renewed", n, before)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
