package testnet

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestDistantHosts(t *testing.T) {
	const rtt = 40 * time.Millisecond
	client, node := Distant(t, rtt, "client", "node")
	for _, addr := range []netip.Addr{node.Addr4, node.Addr6} {
		t.Run(addr.String(), func(t *testing.T) {
			l, err := node.Listen(netip.AddrPortFrom(addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			defer serving.Wait()
			defer l.Close()
			serving.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				io.Copy(c, c)
			})

			began := time.Now()
			c, err := client.Dial("tcp", netip.AddrPortFrom(addr, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// A little more than rtt, on a busy machine much more; but never less.
			if took := time.Since(began); took < rtt {
				t.Errorf("connected after %v, before an answer could come", took)
			}

			// Several windows, so that the link and not the round trip is the measure.
			sent := bytes.Repeat([]byte("baton"), 2_000_000)
			began = time.Now()
			go func() {
				c.Write(sent)
				c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
			}
			took := time.Since(began)
			if took > 10*time.Second {
				t.Errorf("%d bytes there and back took %v", len(sent), took)
			}
			t.Logf("%.0f MB/s there and back", float64(len(sent))/1e6/took.Seconds())
		})
	}
}

// A connection refused is an answer too, and takes as long.
func TestDistantHostRefuses(t *testing.T) {
	const rtt = 30 * time.Millisecond
	client, node := Distant(t, rtt, "client", "node")
	began := time.Now()
	c, err := client.Dial("tcp", netip.AddrPortFrom(node.Addr4, 80))
	if err == nil {
		c.Close()
		t.Fatal("connected to nobody")
	}
	if took := time.Since(began); took < rtt {
		t.Errorf("refused after %v, want %v at least", took, rtt)
	}
}

func TestNothingStaysBehindOfDistantHosts(t *testing.T) {
	use := func(t *testing.T) { Distant(t, time.Millisecond, "client", "node") }
	t.Run("the first, for what the runtime opens once", use)
	before := openFiles(t)
	t.Run("a test", use)
	// Fewer is well: the runtime gives back pipes it has used for splicing.
	if after := openFiles(t); after > before {
		t.Errorf("%d open files after the test, %d before", after, before)
	}
}
