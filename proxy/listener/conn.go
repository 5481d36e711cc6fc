package listener

import (
	"bufio"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// lingerTime is how long a connection that we end is still read from. Closing
// it with unread bytes would make the kernel send a reset, and a reset can
// destroy the response at the client before it has read it.
const lingerTime = 500 * time.Millisecond

// Conn is an accepted connection.
//
// Its state changes by compare-and-swap only, so that a request that arrives
// and a last call that closes an idle connection cannot both win.
type Conn struct {
	*net.TCPConn

	registry *Registry
	onClose  func()
	state    atomic.Int32
	upgrade  atomic.Pointer[upgraded]
	told     atomic.Bool // the last call has reached this upgraded or relayed connection
	counted  atomic.Bool // among the cut
	closed   sync.Once
}

// State is what the connection is doing.
func (c *Conn) State() State { return State(c.state.Load()) }

func (c *Conn) become(from, to State) bool {
	return c.state.CompareAndSwap(int32(from), int32(to))
}

// Begin says that a request has arrived. It reports false if the connection
// had been told to leave: then the request must not be served.
func (c *Conn) Begin() bool {
	if c.become(New, Active) || c.become(Idle, Active) || c.State() == Active {
		return true
	}
	c.lateRequest()
	return false
}

// lateRequest moves the connection from those closed idle to those cut.
func (c *Conn) lateRequest() {
	if c.countCut() {
		c.registry.idleClosed.Add(-1)
	}
}

// rest says that the response is complete and the connection stays open.
func (c *Conn) rest() {
	if c.become(Active, Idle) && c.registry.lastCall.Load() {
		c.leave()
	}
}

// Read makes the connection active with the first byte of a request: the byte
// itself decides, not the later moment at which the server has understood it.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		n, err := c.TCPConn.Read(p)
		if n == 0 || c.become(Idle, Active) || c.become(New, Active) || c.State() != leaving {
			return n, err
		}
		c.lateRequest()
		if err != nil {
			return 0, err
		}
	}
}

// Close ends the connection gracefully where it speaks HTTP: see lingerTime.
func (c *Conn) Close() error {
	var err error
	c.closed.Do(func() {
		if c.upgrade.Load() == nil && c.State() != TCP && c.CloseWrite() == nil {
			c.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, c.TCPConn)
		}
		err = c.TCPConn.Close()
		c.registry.remove(c)
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// Upgrade says that the connection has left HTTP after 101. What is read and
// written from now on goes through the result; head holds what the client has
// sent already.
func (c *Conn) Upgrade(head *bufio.Reader, webSocket bool) net.Conn {
	state := Upgraded
	if webSocket {
		state = WebSocket
	}
	u := &upgraded{Conn: c, tcp: c.TCPConn, head: head, webSocket: webSocket, peerClosed: make(chan struct{})}
	c.upgrade.Store(u)
	c.state.Store(int32(state))
	// The last call may have gone through the registry before this was in it.
	if c.registry.lastCall.Load() {
		go c.farewell()
	}
	return u
}
