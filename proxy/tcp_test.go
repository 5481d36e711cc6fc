package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

func TestHalfCloseTravelsBothWays(t *testing.T) {
	// The server answers only when it has seen the end of the request.
	n := start(t, "", serveTCP(t, func(c *net.TCPConn) {
		all, _ := io.ReadAll(c)
		c.Write(bytes.ToUpper(all))
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}))
	c := dial(t, n.raw)
	c.send("hello")
	c.CloseWrite()
	if got, err := io.ReadAll(c.r); string(got) != "HELLO" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	eventually(t, "closed", func() bool { return n.Counts()[listener.TCP] == 0 })
}

func TestStreamsStayThroughTheDrain(t *testing.T) {
	n := start(t, "", serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) }))
	c := dial(t, n.raw)
	c.send("a")
	c.r.ReadByte()
	n.stop()
	want := strings.Repeat("0123456789", 200_000)
	go func() {
		io.WriteString(c, want)
		c.CloseWrite()
	}()
	if got, err := io.ReadAll(c.r); string(got) != want || err != nil {
		t.Errorf("%d octets, %v; want %d", len(got), err, len(want))
	}
	n.drained(listener.Tally{})
}

func TestAbortOfTheServerReachesTheClientAsAnAbort(t *testing.T) {
	n := start(t, "", serveTCP(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	}))
	c := dial(t, n.raw)
	c.send("x")
	if _, err := c.r.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v; a clean end would say that the stream is whole", err)
	}
}

func TestAbortOfTheClientReachesTheServerAsAnAbort(t *testing.T) {
	ended := make(chan error, 1)
	n := start(t, "", serveTCP(t, func(c *net.TCPConn) {
		io.WriteString(c, "x")
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}))
	c := dial(t, n.raw)
	c.r.ReadByte()
	c.SetLinger(0)
	c.Close()
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v; a clean end would say that the stream is whole", err)
	}
}

func TestIdleStreamIsClosedAndABusyOneIsNot(t *testing.T) {
	const limit = 200 * time.Millisecond
	n := start(t, "", serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) }),
		func(c *config.Config) { c.Listeners[0].IdleTimeout = limit })
	busy, idle := dial(t, n.raw), dial(t, n.raw)
	began := time.Now()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		idle.r.ReadByte()
	}()
	for time.Since(began) < 3*limit {
		busy.send("x")
		if _, err := busy.r.ReadByte(); err != nil {
			t.Fatalf("busy stream: %v", err)
		}
	}
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Error("the idle stream is still open")
	}
}

func TestStreamToNobodyIsReset(t *testing.T) {
	ln := listen(t)
	ln.Close()
	n := start(t, "", ln.Addr().String())
	c, err := net.Dial("tcp", n.raw)
	if err == nil { // the reset may be faster than we are
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}
