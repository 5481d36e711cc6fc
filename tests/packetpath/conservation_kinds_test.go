package packetpath

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// use is what a client does with a connection; it may be over when it returns.
type use func(net.Conn) error

// kinds are the uses of a connection that are none of HTTP/1.1's, by the listener
// that they need. They are for a run at full length.
func kinds(n *demo.Node, asked bool) map[string]map[string]use {
	if !asked {
		return nil
	}
	return map[string]map[string]use{
		n.HTTP.String(): {
			"HTTP/2": askByHTTP2, "WebSocket": echoFrames,
		},
		n.HTTPS.String(): {
			"TLS": overTLS("http/1.1", askTwice), "TLS, HTTP/2": overTLS("h2", askByHTTP2), "TLS, WebSocket": overTLS("http/1.1", echoFrames),
			"TLS, aborted": func(c net.Conn) error {
				if err := overTLS("http/1.1", ask)(c); err != nil {
					return err
				}
				return abort(c)
			},
		},
		n.TCP.String(): {"TCP": echoOctets(3, 0), "TCP, slow": echoOctets(5, 50*time.Millisecond)},
	}
}

func overTLS(protocol string, then use) use {
	return func(c net.Conn) error {
		secure := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		c.SetDeadline(time.Now().Add(time.Minute))
		if err := secure.Handshake(); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		if got := secure.ConnectionState().NegotiatedProtocol; got != protocol {
			return fmt.Errorf("TLS: %q was negotiated, not %s", got, protocol)
		}
		return then(secure)
	}
}

// askByHTTP2 asks twice at once on one connection.
func askByHTTP2(c net.Conn) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // TLS, if any, is below the connection it gets
	transport := &http.Transport{
		Protocols:   protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	h, err := transport.NewClientConn(ctx, "http", "test:1")
	if err != nil {
		return err
	}
	defer h.Close()
	done := make(chan error, 2)
	for range cap(done) {
		go func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://test/", nil)
			if err != nil {
				done <- err
				return
			}
			resp, err := h.RoundTrip(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			done <- err
		}()
	}
	return errors.Join(<-done, <-done)
}

// echoFrames upgrades the connection and has some short frames echoed (RFC 6455, 5.2).
func echoFrames(c net.Conn) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	_, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		return err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("WebSocket: %s", resp.Status)
	}
	for i := range byte(4) {
		payload := []byte{'a' + i, 'b', 'c'}
		if _, err := c.Write(append([]byte{0x82, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)); err != nil {
			return err
		}
		got := make([]byte, 2+len(payload))
		if _, err := io.ReadFull(r, got); err != nil {
			return err
		}
		if !bytes.Equal(got[2:], payload) {
			return fmt.Errorf("WebSocket: %q came back for %q", got, payload)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

// echoOctets has so many messages echoed, with a pause after each.
func echoOctets(messages int, pause time.Duration) use {
	return func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(time.Minute))
		for i := range messages {
			want := fmt.Appendf(nil, "message %d", i)
			if _, err := c.Write(want); err != nil {
				return err
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("TCP: %q came back for %q", got, want)
			}
			time.Sleep(pause)
		}
		return nil
	}
}
