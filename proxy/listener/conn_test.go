package listener

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// accepted returns a registered connection and the client's end of it.
func accepted(t *testing.T, r *Registry, state State) (*Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := ln.(*net.TCPListener).AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	c := r.add(&Conn{tcp: tcp, stream: tcp}, state)
	t.Cleanup(func() { client.Close(); c.Close() })
	return c, client
}

func TestRequestOnALeavingConnectionIsCutAndNotIdleClosed(t *testing.T) {
	t.Run("still in the kernel", func(t *testing.T) {
		r := NewRegistry()
		c, client := accepted(t, r, Idle)
		c.leave()
		io.WriteString(client, "GET / HT")
		client.Close()
		if n, err := c.Read(make([]byte, 100)); n != 0 || err == nil {
			t.Errorf("read %d octets, %v; nothing may be served", n, err)
		}
		if got := r.Tally(); got != (Tally{Cut: 1}) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("already buffered", func(t *testing.T) {
		r := NewRegistry()
		c, _ := accepted(t, r, Idle)
		c.leave()
		if c.Begin() {
			t.Error("the request may be served")
		}
		c.Begin() // counted once
		if got := r.Tally(); got != (Tally{Cut: 1}) {
			t.Errorf("%+v", got)
		}
	})
}

func TestFirstByteOfARequestKeepsItsConnectionFromLeaving(t *testing.T) {
	r := NewRegistry()
	c, client := accepted(t, r, Idle)
	io.WriteString(client, "G")
	if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if c.leave(); c.State() != Active || r.Tally() != (Tally{}) {
		t.Errorf("state %d, %+v", c.State(), r.Tally())
	}
}

func TestConnectionThatComesToRestAfterTheLastCallLeaves(t *testing.T) {
	r := NewRegistry()
	c, client := accepted(t, r, Active)
	r.lastCall.Store(true)
	c.rest()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || r.Tally() != (Tally{IdleClosed: 1}) {
		t.Errorf("%v, %+v", err, r.Tally())
	}
}

// Closing a socket with unread bytes resets it, and then the kernel throws away
// what of the response it has not sent.
func TestCloseWithUnreadBytesDeliversTheResponse(t *testing.T) {
	c, client := accepted(t, NewRegistry(), Active)
	client.(*net.TCPConn).SetReadBuffer(4 << 10)
	c.tcp.SetWriteBuffer(256 << 10)
	io.WriteString(client, "the next request")
	response := make([]byte, 128<<10)
	if _, err := c.Write(response); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		c.Close()
	}()
	select { // until it is done, or must be lingering
	case <-closed:
	case <-time.After(lingerTime / 5):
	}
	if got, err := io.ReadAll(client); len(got) != len(response) || err != nil {
		t.Errorf("%d octets of %d, %v", len(got), len(response), err)
	}
	client.Close()
	<-closed
}
