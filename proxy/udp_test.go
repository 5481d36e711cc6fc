package proxy_test

import (
	"net"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

// serveUDP answers each datagram with what f makes of it and returns the address.
func serveUDP(t *testing.T, f func(from, datagram string) string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo([]byte(f(from.String(), string(b[:n]))), from)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c.LocalAddr().String()
}

// datagrams makes the web listener one of UDP.
func datagrams(c *config.Config) {
	c.Listeners[0].Protocol, c.Listeners[0].IdleTimeout = config.UDP, 30*time.Second
}

func startUDP(t *testing.T, upstream string, change ...func(*config.Config)) *node {
	t.Helper()
	return startWith(t, func(*proxy.Options) {}, upstream, "", append([]func(*config.Config){datagrams}, change...)...)
}

func dialUDP(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func ask(t *testing.T, c net.Conn, word string) string {
	t.Helper()
	if _, err := c.Write([]byte(word)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// Each client has a socket of its own towards the upstream, for as long as it
// speaks.
func TestDatagramsAreRelayed(t *testing.T) {
	n := startUDP(t, serveUDP(t, func(from, word string) string { return from + " " + word }))
	a, b := dialUDP(t, n.udp), dialUDP(t, n.udp)
	first := ask(t, a, "one")
	if again := ask(t, a, "one"); again != first {
		t.Errorf("the upstream saw the client as %q, then as %q", first, again)
	}
	if other := ask(t, b, "one"); other == first {
		t.Errorf("two clients share %q", other)
	}
	if got := n.Counts()[listener.UDP]; got != 2 {
		t.Errorf("%d flows, want 2", got)
	}
}

// A flow ends by silence, and a drain when every flow has.
func TestDatagramsDrainInSilence(t *testing.T) {
	n := startUDP(t, serveUDP(t, func(_, word string) string { return word }), func(c *config.Config) {
		c.Listeners[0].IdleTimeout = 200 * time.Millisecond
	})
	c := dialUDP(t, n.udp)
	ask(t, c, "before")
	n.term()
	if got := ask(t, c, "during"); got != "during" {
		t.Errorf("in the drain: %q", got)
	}
	n.drained(listener.Tally{})
}

func TestDatagramsAtTheLastCall(t *testing.T) {
	n := startUDP(t, serveUDP(t, func(_, word string) string { return word }))
	ask(t, dialUDP(t, n.udp), "word")
	n.term()
	n.lastCall()
	n.drained(listener.Tally{Cut: 1})
}

func TestDatagramsAtTheirBound(t *testing.T) {
	n := startUDP(t, serveUDP(t, func(_, word string) string { return word }), func(c *config.Config) {
		c.Listeners[0].MaxConnections = 1
	})
	first, second := dialUDP(t, n.udp), dialUDP(t, n.udp)
	ask(t, first, "one")
	second.Write([]byte("dropped"))
	if got := ask(t, first, "two"); got != "two" { // the worker has read what came before
		t.Errorf("%q", got)
	}
	if got := n.Counts()[listener.UDP]; got != 1 {
		t.Errorf("%d flows, want 1", got)
	}
}

// An answer leaves from the address that the client has sent to, also where the
// listener has every address.
func TestDatagramsAnsweredFromTheirAddress(t *testing.T) {
	n := startUDP(t, serveUDP(t, func(_, word string) string { return word }), func(c *config.Config) {
		c.Listeners[0].Address = "0.0.0.0:0"
	})
	_, port, err := net.SplitHostPort(n.udp)
	if err != nil {
		t.Fatal(err)
	}
	// Connected: an answer from elsewhere would not be taken.
	if got := ask(t, dialUDP(t, "127.0.0.9:"+port), "word"); got != "word" {
		t.Errorf("%q", got)
	}
}

// An upstream that is not there yet costs datagrams and nothing else.
func TestDatagramsSurviveADeadUpstream(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := gone.LocalAddr().String()
	gone.Close()
	n := startUDP(t, address)
	c := dialUDP(t, n.udp)
	c.Write([]byte("lost"))
	eventually(t, "the flow", func() bool { return n.Counts()[listener.UDP] == 1 })
	back, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	go func() {
		b := make([]byte, 100)
		for {
			k, from, err := back.ReadFrom(b)
			if err != nil {
				return
			}
			back.WriteTo(b[:k], from)
		}
	}()
	if got := ask(t, c, "kept"); got != "kept" {
		t.Errorf("%q", got)
	}
}
