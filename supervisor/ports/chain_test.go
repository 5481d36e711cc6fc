package ports

import (
	"net"
	"testing"
)

// Accepted connections are bound to their listener's port, too; those who
// connected have ports of their own.
func TestChainCountsConnections(t *testing.T) {
	l := listen(t, "tcp4", "127.0.0.1:0", true)
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	for range 3 {
		c, err := net.Dial("tcp4", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := ChainOf(addr.Port())
	if err != nil {
		t.Fatal(err)
	}
	if c.Sockets != 4 || c.Longest != 4 || len(c.Listening) != 1 || c.Addresses() != 1 || len(c.Exclusive()) != 0 {
		t.Errorf("%+v, want 4 sockets on one address, 1 of them listening, which shares", c)
	}
	if d := BindTime(addr, false, 0); d <= 0 {
		t.Errorf("a bind took %v", d)
	}
}
