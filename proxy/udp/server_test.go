package udp_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/proxy/udp"
)

func bound(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

// echo answers, after a while, what comes to a socket.
func echo(c *net.UDPConn, after time.Duration) {
	b := make([]byte, 100)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		time.Sleep(after)
		c.WriteTo(b[:n], from)
	}
}

// answered fails the test unless a client gets something.
func answered(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 100)); err != nil {
		t.Error(err)
	}
}

// TestAnswerAfterTheIdleTimeout has an upstream that takes longer to answer than a flow
// may be silent. The flow is there still, through a drain.
func TestAnswerAfterTheIdleTimeout(t *testing.T) {
	origin, socket := bound(t), bound(t)
	const timeout = 50 * time.Millisecond
	go echo(origin, 10*timeout)
	dial := func(context.Context) (*net.UDPConn, func(), error) {
		c, err := net.DialUDP("udp", nil, origin.LocalAddr().(*net.UDPAddr))
		return c, func() {}, err
	}
	s := udp.New(config.Listener{Name: "dgram", Protocol: config.UDP, IdleTimeout: timeout}, []*net.UDPConn{socket}, dial, udp.Account{}, slog.New(slog.DiscardHandler))
	s.Start()
	client, err := net.Dial("udp", socket.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 2 {
		client.Write([]byte("word"))
		answered(t, client)
		s.Drain(0)
	}
	select {
	case <-s.Empty():
	case <-time.After(time.Minute):
		t.Error("the drain does not end")
	}
	s.LastCall(0)
}

// TestDrainServesWhatWaits begins a drain when the server knows no flow: a worker is at
// the first datagram of one, and those of two others are queued behind it. All three
// are answered, for nobody else has them.
func TestDrainServesWhatWaits(t *testing.T) {
	origin, socket := bound(t), bound(t)
	go echo(origin, 0)
	dials, goOn := make(chan struct{}, 3), make(chan struct{})
	dial := func(context.Context) (*net.UDPConn, func(), error) {
		dials <- struct{}{}
		<-goOn
		c, err := net.DialUDP("udp", nil, origin.LocalAddr().(*net.UDPAddr))
		return c, func() {}, err
	}
	l := config.Listener{Name: "dgram", Protocol: config.UDP, IdleTimeout: 2 * time.Second}
	s := udp.New(l, []*net.UDPConn{socket}, dial, udp.Account{}, slog.New(slog.DiscardHandler))
	s.Start()
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("udp", socket.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("word")); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	<-dials
	s.Drain(0)
	ended := make(chan struct{})
	go func() { // what a generation does
		defer close(ended)
		<-s.Empty()
		s.LastCall(0)
	}()
	time.Sleep(100 * time.Millisecond) // for a drain that believes that it is over
	close(goOn)
	for _, c := range clients {
		answered(t, c)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the drain does not end")
	}
	if got := s.Tally(); got != (listener.Tally{}) {
		t.Errorf("%+v", got)
	}
}
