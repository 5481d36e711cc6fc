package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Kind is what a client does.
type Kind string

// The kinds of clients.
const (
	HTTPNew        Kind = "http-new"        // a connection for each request
	HTTPKeepAlive  Kind = "http-keepalive"  // one connection until told Connection: close
	HTTPSNew       Kind = "https-new"       // the same over TLS, each session resumed
	HTTPSKeepAlive Kind = "https-keepalive" // the same over TLS
	H2New          Kind = "h2-new"          // HTTP/2 over TLS, a connection for each request
	H2             Kind = "h2"              // streams side by side on one connection until told GOAWAY
	H2C            Kind = "h2c"             // the same without TLS
	GRPC           Kind = "grpc"            // calls side by side on one connection, with or without TLS
	GRPCStream     Kind = "grpc-stream"     // messages both ways for seconds
	Events         Kind = "events"          // server-sent events for seconds, with or without TLS
	WebSocket      Kind = "websocket"       // echo for seconds, closed by the client, with or without TLS
	Upload         Kind = "upload"          // a body that takes seconds
	Download       Kind = "download"        // an answer that takes seconds
	TCP            Kind = "tcp"             // echo for seconds, then half close
	TCPNew         Kind = "tcp-new"         // a connection for one short echo
	H3New          Kind = "h3-new"          // HTTP/3, a connection for each request, begun by early data
	H3             Kind = "h3"              // HTTP/3, one connection until told GOAWAY
	UDP            Kind = "udp"             // datagrams both ways for seconds
)

// Kinds lists the kinds that go by TCP, in the order reports show them.
var Kinds = []Kind{
	HTTPNew, HTTPKeepAlive, HTTPSNew, HTTPSKeepAlive, H2New, H2, H2C, GRPC, GRPCStream,
	Events, WebSocket, Upload, Download, TCP, TCPNew,
}

// DatagramKinds lists those that go by UDP, which a [Load] has only where it
// knows an address for them. Reports show them after the others.
var DatagramKinds = []Kind{H3New, H3, UDP}

// ErrCut is the error of an operation that the server ended by announcing that
// it goes away, in the two protocols here that can say so: WebSocket by close
// code 1001, HTTP/2 by GOAWAY before the connection's end. It is neither a
// success nor a failure and has a column of its own.
var ErrCut = errors.New("cut by announcement")

// Flow names a connection by its two ends.
type Flow struct {
	Client, Server netip.AddrPort
}

// Op is one operation of a client, from the first byte it wanted to send to the
// last one it had to receive.
type Op struct {
	Kind       Kind
	Start, End time.Time
	// Flow is the connection, zero where none came about. Ports are used again,
	// so it is the connection whose dial began at Dialled and no other of that name.
	Flow    Flow
	Dialled time.Time
	// Generation is the one that has answered on the connection; 0 where none has,
	// or the protocol has no way to say it.
	Generation int
	// Wait is the longest the client waited for the other end: for the head of an
	// answer (a connection of its own included), the receipt of an upload, an
	// echo. The seconds that a slow body takes by intent are not in it.
	Wait time.Duration
	// Err is nil where everything came back, whole and right.
	Err error
}

// Cut reports whether the server announced that it ends the operation.
func (o Op) Cut() bool { return errors.Is(o.Err, ErrCut) }

// Failed reports whether a client would call the operation an error.
func (o Op) Failed() bool { return o.Err != nil && !o.Cut() }

// Spans reports whether the operation was under way throughout w.
func (o Op) Spans(w Window) bool { return o.Start.Before(w.From) && o.End.After(w.To) }

// Overlaps reports whether any part of the operation lies in w.
func (o Op) Overlaps(w Window) bool { return o.Start.Before(w.To) && o.End.After(w.From) }

// Window is a time between two instants.
type Window struct{ From, To time.Time }

// attempt is an operation under way: what a client learns, it writes here.
type attempt struct {
	Op
	seed uint32 // another one each time, so that no answer fits another operation
	slow bool   // a short kind takes its time, so as to be caught in the middle
	long time.Duration
}

// patience is how long an operation waits for anything before it counts as
// failed. A stall shows in Wait long before; this only keeps a client from
// hanging for ever.
const patience = time.Minute

// dial opens a connection by the client's means and makes it the attempt's.
func (c *client) dial(a *attempt, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Before it is there: a client may learn much later that it is.
	a.Dialled = time.Now()
	conn, err := c.connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	a.use(conn)
	return conn, nil
}

// dialTCP connects from wherever this process is.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// use notes the connection that the attempt runs on and gives it a deadline.
func (a *attempt) use(c net.Conn) {
	a.Flow = Flow{addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())}
	c.SetDeadline(time.Now().Add(a.long + patience))
}

// waited notes the wait since an instant if it is the longest so far.
func (a *attempt) waited(since time.Time) { a.Wait = max(a.Wait, time.Since(since)) }

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
