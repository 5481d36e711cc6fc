package demo

import (
	"net"
	"sync/atomic"
)

// goAwayConn is a client's connection that speaks HTTP/2. It notes the first
// GOAWAY of the server: net/http tells only that a connection takes no more
// streams, and not whether that had been announced.
type goAwayConn struct {
	net.Conn
	told atomic.Bool

	// Touched by Read alone.
	head [9]byte // of a frame (RFC 9113, 4.1): length, type, flags, stream
	have int     // octets of head
	left int     // octets of the payload to come
}

const frameGoAway = 0x7

// Read implements [net.Conn].
func (c *goAwayConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if c.left > 0 {
			skip := min(c.left, len(b))
			c.left -= skip
			b = b[skip:]
			continue
		}
		read := copy(c.head[c.have:], b)
		b = b[read:]
		if c.have += read; c.have == len(c.head) {
			c.have = 0
			c.left = int(c.head[0])<<16 | int(c.head[1])<<8 | int(c.head[2])
			if c.head[3] == frameGoAway {
				c.told.Store(true)
			}
		}
	}
	return n, err
}
