package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

var errNotResumed = errors.New("a session that the server had given a ticket for was not resumed")

// dialTLS connects over TLS for one protocol (an ALPN name), which the server
// must agree to. Each connection but the client's first resumes the session of
// an earlier one, whichever generation that was with.
func (c *client) dialTLS(a *attempt, protocol string) (net.Conn, error) {
	tcp, err := c.dial(a, c.tlsWeb)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(tcp, &tls.Config{
		RootCAs: c.roots, ServerName: serverName, NextProtos: []string{protocol}, ClientSessionCache: c.tickets,
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		tcp.Close()
		c.tickets.used.Store(false) // crypto/tls has thrown the ticket away, as it does when a handshake fails
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	state := conn.ConnectionState()
	switch {
	case state.NegotiatedProtocol != protocol:
		err = fmt.Errorf("TLS: agreed on %q, not %q", state.NegotiatedProtocol, protocol)
	case !c.forgive && c.tickets.used.Load() && !state.DidResume:
		err = errNotResumed
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// tickets keeps the newest session ticket of a client, or of clients that share
// their connections.
type tickets struct {
	tls.ClientSessionCache
	used atomic.Bool // an answer has been read, before which a ticket comes: the next connection must resume
}

func newTickets() *tickets { return &tickets{ClientSessionCache: tls.NewLRUClientSessionCache(1)} }

// answered says that an answer has been read.
func (c *client) answered(secure bool) {
	if secure {
		c.tickets.used.Store(true)
	}
}

// takesTLS decides for kinds that do the same with and without TLS, half of the time each.
func (c *client) takesTLS(a *attempt) bool { return c.tlsWeb != "" && a.seed%4 < 2 }

// limit is how long an operation may last.
func (a *attempt) limit() time.Duration { return a.long + patience }
