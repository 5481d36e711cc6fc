package listener

import (
	"io"
	"net"
	"testing"
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
	c := r.add(tcp, state, nil)
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
	if _, err := client.Read(make([]byte, 1)); err != io.EOF || r.Tally() != (Tally{IdleClosed: 1}) {
		t.Errorf("%v, %+v", err, r.Tally())
	}
}
