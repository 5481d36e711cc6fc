package upstream

import (
	"context"
	"net"
	"net/http/httptrace"
	"sync"
)

// settledConn is a connection of HTTP/1 that is not used again before it is known
// that its last response ended where it should.
//
// net/http puts a connection back before it looks whether octets have come behind
// the response: a body to HEAD, more than Content-Length. A request that gets the
// connection in between gets them for its response, and its own goes to the
// next. Only when net/http reads again has it found its buffer empty; else it
// closes the connection.
type settledConn struct {
	*net.TCPConn

	mu      sync.Mutex
	reading bool
	closed  bool
	changed chan struct{} // closed when either becomes true; nil: nobody waits
}

func (c *settledConn) Read(p []byte) (int, error) {
	c.set(&c.reading, true)
	n, err := c.TCPConn.Read(p)
	c.set(&c.reading, false)
	return n, err
}

func (c *settledConn) Close() error {
	c.set(&c.closed, true)
	return c.TCPConn.Close()
}

func (c *settledConn) set(field *bool, value bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*field = value
	if value && c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// settled returns when the connection is being read from, or closed: then
// net/http takes another.
func (c *settledConn) settled(ctx context.Context) {
	c.mu.Lock()
	if c.reading || c.closed {
		c.mu.Unlock()
		return
	}
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	changed := c.changed
	c.mu.Unlock()
	select {
	case <-changed:
	case <-ctx.Done():
	}
}

// waitUntilSettled makes requests of ctx wait for the connection they get.
func waitUntilSettled(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if c, ok := got.Conn.(*settledConn); ok && got.Reused {
			c.settled(ctx)
		}
	}})
}
