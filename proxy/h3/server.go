// Package h3 serves HTTP/3 on the UDP sockets of one listener.
//
// Every connection ID that it gives out names the node, the slot and the worker
// (package quicid), so that whoever steers packets brings each to the socket it
// belongs to, however many generations share the port and wherever the client
// moves to.
//
// The sockets stay open, and handshakes go on, after new connections have been
// led elsewhere: to close a listener of quic-go is to refuse the handshakes that
// are under way (quic-go, Listener.Close). A drain therefore waits for them first.
package h3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/quicid"
)

const (
	// handshakeIdle bounds the silence in a handshake; the whole of it may take
	// twice that (quic-go, Config.HandshakeIdleTimeout). Shorter than quic-go's
	// five seconds, since a drain has to wait for handshakes.
	handshakeIdle = 3 * time.Second
	// maxIdle bounds the silence of a connection, which a client that wants to
	// keep it breaks by a PING. It is how long a client that has gone is waited for,
	// whatever the listener's idle_timeout, which counts from the last request.
	maxIdle = 30 * time.Second
)

// Options are what a server is made of besides its sockets.
type Options struct {
	Listener config.Listener
	// Owner is what connection IDs name, and the worker beside it. Without a ServerID they
	// name nobody.
	Owner quicid.ID
	// Keys say how IDs are encrypted; see [IDs].
	Keys *keys.Reader
	// TLS is asked for the configuration of each handshake, and always answers
	// with the same one: its ticket keys may have changed meanwhile.
	TLS func() *tls.Config
	// ResetKey makes the tokens by which a client believes that its connection is
	// lost. All generations of a node share it: the one that gets a packet of a
	// dead one can then say so. Nil: none are sent.
	ResetKey *quic.StatelessResetKey
	// TokenKey makes the tokens that prove a client's address, to any generation
	// that has it. Nil: a key of this server's own.
	TokenKey *quic.TokenGeneratorKey
	// Ledger gets the account of each connection whose handshake is complete,
	// under the name of the listener's UDP sockets. Nil keeps none.
	Ledger *ledger.Writer
	// Handler takes the requests, of which [listener.FromContext] tells the connection.
	Handler http.Handler
	Log     *slog.Logger
}

// Server serves one listener, on all its worker sockets. It implements the
// same life as package listener's: Start, Drain, LastCall.
type Server struct {
	opts    Options
	http    http3.Server
	workers []*worker
	flows   flows
	number  int // of the listener in the ledger

	closed   atomic.Bool     // a client has been told a close
	lastCall context.Context // ends when clients are waited for no longer
	endWait  context.CancelFunc
	loops    sync.WaitGroup
}

// worker is one socket with what quic-go makes of it.
type worker struct {
	server    *Server
	socket    *net.UDPConn
	transport *quic.Transport
	listener  *quic.EarlyListener
}

// New takes the sockets, which are the server's from now on; it closes them if it
// fails. Handshakes begin at once, requests are served from Start on.
func New(sockets []*net.UDPConn, opts Options) (*Server, error) {
	s := &Server{opts: opts}
	s.number, _ = opts.Ledger.Listener(opts.Listener.Name + contract.UDPSuffix)
	s.flows = flows{most: opts.Listener.MaxConnections, all: make(map[*flow]struct{}), empty: make(chan struct{})}
	s.lastCall, s.endWait = context.WithCancel(context.Background())
	s.opts.Log = opts.Log.With("listener", opts.Listener.Name)
	s.http = http3.Server{
		Handler:        http.HandlerFunc(s.serve),
		MaxHeaderBytes: int(opts.Listener.MaxHeaderBytes),
		IdleTimeout:    opts.Listener.IdleTimeout,
		ConnContext: func(ctx context.Context, c *quic.Conn) context.Context {
			return listener.WithConnection(ctx, flowOf(c))
		},
	}
	for i, socket := range sockets {
		ids := &IDs{Owner: opts.Owner, Keys: opts.Keys}
		ids.Owner.Worker = uint8(i)
		s.workers = append(s.workers, &worker{server: s, socket: socket, transport: &quic.Transport{
			Conn:                  s.watch(socket, ids),
			ConnectionIDLength:    ids.ConnectionIDLen(),
			ConnectionIDGenerator: ids,
			StatelessResetKey:     opts.ResetKey,
			TokenGeneratorKey:     opts.TokenKey,
			ConnContext:           s.arrived,
		}})
	}
	for _, w := range s.workers {
		var err error
		w.listener, err = w.transport.ListenEarly(opts.TLS(), &quic.Config{
			HandshakeIdleTimeout: handshakeIdle,
			MaxIdleTimeout:       maxIdle,
			Allow0RTT:            true,
		})
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listener %s: serve QUIC on %s: %w", opts.Listener.Name, w.socket.LocalAddr(), err)
		}
	}
	return s, nil
}

// Start serves requests from now on.
func (s *Server) Start() {
	for _, w := range s.workers {
		s.loops.Go(func() {
			if err := s.http.ServeListener(w); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, quic.ErrTransportClosed) {
				s.opts.Log.Error("serve HTTP/3", "error", err)
			}
		})
	}
}

var errRefused = errors.New("draining, or at max_connections")

// arrived sees every connection whose first packet has come. It refuses it once
// the server is to have no new ones, or has enough: the client is told at once.
func (s *Server) arrived(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	s.opts.TLS() // before the handshake looks for ticket keys
	f := s.flows.add()
	if f == nil {
		return nil, errRefused
	}
	context.AfterFunc(ctx, f.end)
	return context.WithValue(ctx, flowKey{}, f), nil
}

// Accept returns the next connection to serve; http3.Server asks for it.
func (w *worker) Accept(ctx context.Context) (*quic.Conn, error) {
	conn, err := w.listener.Accept(ctx)
	if err != nil {
		return nil, err
	}
	f := flowOf(conn)
	f.conn.Store(conn)
	go func() {
		select {
		case <-conn.HandshakeComplete():
			f.complete.Store(true)
			f.enter(w.server.opts.Ledger, w.server.number)
		case <-conn.Context().Done():
		}
	}()
	return conn, nil
}

// Close is asked for by no one: the listener lives as long as the transport.
func (w *worker) Close() error { return nil }

// Addr is the socket's address.
func (w *worker) Addr() net.Addr { return w.socket.LocalAddr() }

// serve takes one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	f := listener.FromContext(r.Context()).(*flow)
	f.requests.Add(1)
	defer f.requests.Add(-1)
	f.enter(s.opts.Ledger, s.number) // a request may be here before the handshake is known to be complete
	if !s.original(r, f) {
		panic(http.ErrAbortHandler)
	}
	if ended(w, r) {
		r.Body, r.ContentLength = http.NoBody, 0
		s.opts.Handler.ServeHTTP(w, r)
		return
	}
	body := r.Body
	s.opts.Handler.ServeHTTP(w, r)
	// A handler that leaves a body unread makes quic-go ask the client to stop
	// sending it, and not every client takes that for anything but a failure.
	io.CopyN(io.Discard, body, maxUnread)
}

// ended reports whether the request has ended with its head. Most do, and only the
// end of the stream tells. Without it net/http waits for a first octet of a GET's body, and
// sends other methods on with a body in chunks, which is empty.
func ended(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength >= 0 {
		return false // it says so itself
	}
	// A stream that is at its end answers so whatever the deadline, and of any other
	// nothing is read.
	c := http.NewResponseController(w)
	if c.SetReadDeadline(time.Unix(1, 0)) != nil {
		return false
	}
	_, err := r.Body.Read(nil)
	c.SetReadDeadline(time.Time{})
	return err == io.EOF
}

// maxUnread is how much of a request's body is read when nobody wants it.
const maxUnread = 256 << 10

// original holds a request that came before the handshake was complete, as early
// data, until it is: who replays it has not the keys to complete one. Methods
// that are safe to repeat go on at once (RFC 8470, section 3). It reports false if
// the handshake fails.
func (s *Server) original(r *http.Request, f *flow) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	conn := f.conn.Load()
	select {
	case <-conn.HandshakeComplete():
		return true
	case <-conn.Context().Done():
		return false
	}
}

// close frees everything without a word to the clients.
func (s *Server) close() {
	s.endWait()
	for _, w := range s.workers {
		w.transport.Close()
		w.socket.Close()
	}
}

// Counts says what the connections are doing.
func (s *Server) Counts() listener.Counts { return s.flows.counts() }
