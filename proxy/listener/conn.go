package listener

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// lingerTime is how long a connection that we end is still read from. Closing
// it with unread bytes would make the kernel send a reset, and a reset can
// destroy the response at the client before it has read it.
const lingerTime = 500 * time.Millisecond

// Conn is an accepted connection, whatever it speaks. What is read and written
// is what the client means: below it there may be TLS.
//
// Its state changes by compare-and-swap only, so that a request that arrives
// and a last call that closes an idle connection cannot both win.
type Conn struct {
	tcp    *net.TCPConn
	stream stream // tcp, or the TLS on it

	registry *Registry
	onClose  func()
	flow     ledger.Flow
	reset    atomic.Bool // it ended by a reset, of the client's or ours
	state    atomic.Int32
	preface  int                     // octets of HTTP/2's seen, negative when it is not; touched by Read alone
	strange  bool                    // it speaks what TLS has not negotiated; touched by Read alone
	head     head                    // of the request of HTTP/1 that is arriving; read from when net/http has it
	h2       atomic.Pointer[session] // once the preface has been seen
	upgrade  atomic.Pointer[upgraded]
	told     atomic.Bool // the last call has reached this upgraded or relayed connection
	counted  atomic.Bool // among the cut
	closed   sync.Once
}

// stream is what package net's and package tls's connections have in common.
type stream interface {
	io.ReadWriter
	CloseWrite() error
}

// Flow is the connection's account in the ledger.
func (c *Conn) Flow() *ledger.Flow { return &c.flow }

// note remembers that the connection was reset, as reads and writes report it.
func (c *Conn) note(err error) {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		c.reset.Store(true)
	}
}

// State is what the connection is doing.
func (c *Conn) State() State { return State(c.state.Load()) }

func (c *Conn) become(from, to State) bool {
	return c.state.CompareAndSwap(int32(from), int32(to))
}

// Begin says that a request has arrived. It reports false if the connection
// had been told to leave: then the request must not be served.
func (c *Conn) Begin() bool {
	if c.h2.Load() != nil {
		return c.State() != leaving // the frames have counted it
	}
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
	if c.h2.Load() == nil && c.become(Active, Idle) && c.registry.lastCall.Load() {
		c.leave()
	}
}

// Read makes the connection active with the first byte of a request: the byte
// itself decides, not the later moment at which the server has understood it.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		if c.strange {
			return 0, io.EOF
		}
		n, err := c.stream.Read(p)
		if err != nil {
			c.note(err)
		}
		if h := c.h2.Load(); h != nil {
			h.received(p[:n])
			return n, err
		}
		if n == 0 {
			c.answerPlain(err)
			return n, err
		}
		first := c.become(New, Active)
		if first || c.become(Idle, Active) {
			c.head.start(len(p), first)
		}
		if c.State() != leaving {
			c.head.follow(p[:n])
			if !c.lookForHTTP2(p[:n]) {
				c.strange = true
				return 0, io.EOF
			}
			return n, err
		}
		c.lateRequest()
		if err != nil {
			return 0, err
		}
	}
}

// Write sends p.
func (c *Conn) Write(p []byte) (int, error) {
	var n int
	var err error
	if h := c.h2.Load(); h != nil {
		n, err = h.write(p)
	} else {
		n, err = c.stream.Write(p)
	}
	if err != nil {
		c.note(err)
	}
	return n, err
}

// answerPlain tells a client that speaks HTTP where TLS is spoken.
func (c *Conn) answerPlain(err error) {
	var notTLS tls.RecordHeaderError
	if !errors.As(err, &notTLS) || notTLS.Conn == nil {
		return
	}
	switch string(notTLS.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		io.WriteString(c.tcp, "HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nthis port speaks https\n")
	}
}

// Close ends the connection gracefully where it speaks HTTP: see lingerTime.
func (c *Conn) Close() error {
	var err error
	c.closed.Do(func() {
		switch {
		case c.upgrade.Load() != nil || c.State() == TCP:
			c.endTLS()
		case c.CloseWrite() == nil:
			c.tcp.SetReadDeadline(time.Now().Add(lingerTime))
			io.Copy(io.Discard, c.tcp)
		}
		err = c.tcp.Close()
		c.flow.Close(c.reset.Load())
		c.registry.remove(c)
		if c.onClose != nil {
			c.onClose()
		}
	})
	return err
}

// CloseWrite says to the client that nothing more will come.
func (c *Conn) CloseWrite() error {
	c.endTLS()
	return c.tcp.CloseWrite()
}

// closeOnceSent closes the connection when the client has all that was sent to
// it, and has had a moment to close it first. A client that HTTP/2 lets speak
// on, to grant room, would otherwise meet a reset that takes the rest from it.
func (c *Conn) closeOnceSent() {
	// A timer, since the server sets read deadlines of its own.
	time.AfterFunc(lingerTime, func() {
		if unsent(c.tcp) > 0 {
			c.closeOnceSent()
			return
		}
		c.tcp.Close()
	})
}

// unsent is how many octets the client has not acknowledged; 0 once the
// connection is closed.
func unsent(tcp *net.TCPConn) int {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

// endTLS sends the end of the stream that TLS has of its own.
func (c *Conn) endTLS() {
	if tls, ok := c.stream.(*tls.Conn); ok {
		// It waits for the write before, which may be stuck.
		c.tcp.SetWriteDeadline(time.Now().Add(lingerTime))
		tls.CloseWrite()
	}
}

// The rest of net.Conn.

func (c *Conn) LocalAddr() net.Addr                { return c.tcp.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr               { return c.tcp.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error      { return c.tcp.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.tcp.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.tcp.SetWriteDeadline(t) }

// Upgrade says that the connection has left HTTP after 101. What is read and
// written from now on goes through the result; head holds what the client has
// sent already.
func (c *Conn) Upgrade(head *bufio.Reader, webSocket bool) net.Conn {
	state := Upgraded
	if webSocket {
		state = WebSocket
	}
	u := &upgraded{Conn: c, head: head, webSocket: webSocket, peerClosed: make(chan struct{})}
	c.upgrade.Store(u)
	c.state.Store(int32(state))
	// The last call may have gone through the registry before this was in it.
	if c.registry.lastCall.Load() {
		go c.farewell()
	}
	return u
}
