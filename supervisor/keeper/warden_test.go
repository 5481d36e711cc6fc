package keeper

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
)

// A keeper of another protocol is neither ended nor done without.
func TestKeeperOfAnotherVersion(t *testing.T) {
	dir, err := os.MkdirTemp("", "baton") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: Socket(dir), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			c.Write([]byte(`{"version":9,"error":"a message of protocol 1, this is 9"}`))
			c.Close()
		}
	}()
	// This process answers: it would not survive being taken for one that is stuck.
	_, _, err = Open(dir, func(err error) { t.Errorf("done without: %v", err) })
	if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "a message of protocol 9, this is 1") {
		t.Errorf("%v", err)
	}
}
