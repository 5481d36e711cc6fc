// Package upstream holds the connections to the servers behind the proxy.
//
// An Upstream chooses the endpoint of each request or stream: of two drawn at
// random, the one with less in flight. An endpoint that cannot be reached is
// passed over for the next, since nothing of the request has left yet; once a
// byte may have arrived, only what is safe to repeat is repeated.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// ErrFull means that every endpoint has its max_connections.
var ErrFull = errors.New("every endpoint has its max_connections")

const (
	pingAfter   = 15 * time.Second // of silence on a connection in use
	pingTimeout = 15 * time.Second
)

// DialError is a connection to an endpoint that could not be made.
type DialError struct {
	Endpoint string
	Err      error
}

func (e *DialError) Error() string { return fmt.Sprintf("connect to %s: %v", e.Endpoint, e.Err) }
func (e *DialError) Unwrap() error { return e.Err }

// Upstream is a named set of endpoints.
type Upstream struct {
	Name string

	endpoints []*Endpoint
	dialer    net.Dialer
	transport *http.Transport
	http1     bool  // what it speaks; else HTTP/2
	maxConns  int64 // for each endpoint; 0 means no bound
}

// Endpoint is one address of an upstream.
type Endpoint struct {
	Address string

	inFlight atomic.Int64
}

// Release ends what [Upstream.RoundTrip] or [Upstream.Dial] began on the endpoint.
func (e *Endpoint) Release() { e.inFlight.Add(-1) }

// New prepares an upstream. It connects to nothing yet.
func New(cfg config.Upstream) *Upstream {
	u := &Upstream{
		Name:     cfg.Name,
		dialer:   net.Dialer{Timeout: cfg.ConnectTimeout},
		maxConns: int64(cfg.MaxConnections),
	}
	for _, address := range cfg.Endpoints {
		u.endpoints = append(u.endpoints, &Endpoint{Address: address})
	}
	maxIdle := cfg.MaxIdle
	if maxIdle == 0 {
		maxIdle = -1 // to net/http 0 means two, which costs most of the throughput
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(cfg.Protocol != config.H2C)
	protocols.SetUnencryptedHTTP2(cfg.Protocol == config.H2C)
	u.http1 = protocols.HTTP1()
	u.transport = &http.Transport{
		DialContext:         u.dialSettled,
		Protocols:           protocols,
		DisableCompression:  true, // bodies pass as they are
		MaxIdleConnsPerHost: maxIdle,
		MaxConnsPerHost:     cfg.MaxConnections,
		IdleConnTimeout:     cfg.IdleTimeout,
		// An upstream that ignores the expectation gets the body after this long (RFC 9110, 10.1.1).
		ExpectContinueTimeout: time.Second,
		// A connection that carries many requests and has gone dead unnoticed
		// would hold up all of them.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	return u
}

// Close drops the unused connections. What is in flight goes on.
func (u *Upstream) Close() { u.transport.CloseIdleConnections() }

func (u *Upstream) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := u.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, &DialError{Endpoint: address, Err: err}
	}
	return conn, nil
}

func (u *Upstream) dialSettled(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := u.dial(ctx, network, address)
	if tcp, ok := conn.(*net.TCPConn); ok && u.http1 {
		return &settledConn{TCPConn: tcp}, nil
	}
	return conn, err
}

// RoundTrip sends req to an endpoint. On success the caller releases the
// endpoint when it is done with the response's body.
//
// The host of req.URL is set here; the rest is the caller's, as are the limits
// on time, by req's context. Errors to the connect are [DialError].
func (u *Upstream) RoundTrip(req *http.Request) (*http.Response, *Endpoint, error) {
	if req.Body != nil && req.Body != http.NoBody {
		body := &replayBody{src: req.Body}
		req.Body, req.GetBody = body.reader(), body.again
	}
	if u.http1 {
		req = req.WithContext(waitUntilSettled(req.Context()))
	}
	return attempt(u, req.Context(), func(e *Endpoint) (*http.Response, error) {
		req.URL.Host = e.Address
		return u.transport.RoundTrip(req)
	})
}

// Dial connects a stream to an endpoint. On success the caller closes the
// connection and then releases the endpoint.
func (u *Upstream) Dial(ctx context.Context) (*net.TCPConn, *Endpoint, error) {
	return attempt(u, ctx, func(e *Endpoint) (*net.TCPConn, error) {
		if u.maxConns > 0 && e.inFlight.Load() > u.maxConns {
			return nil, &DialError{Endpoint: e.Address, Err: ErrFull}
		}
		conn, err := u.dial(ctx, "tcp", e.Address)
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	})
}

// DialUDP makes a socket for the datagrams of one flow to an endpoint. On success
// the caller closes it and then releases the endpoint.
func (u *Upstream) DialUDP(ctx context.Context) (*net.UDPConn, *Endpoint, error) {
	return attempt(u, ctx, func(e *Endpoint) (*net.UDPConn, error) {
		conn, err := u.dial(ctx, "udp", e.Address)
		if err != nil {
			return nil, err
		}
		return conn.(*net.UDPConn), nil
	})
}

// attempt calls do with one endpoint after the other until one can be
// connected to; each at most once. It leaves the last one in flight on success.
func attempt[T any](u *Upstream, ctx context.Context, do func(*Endpoint) (T, error)) (T, *Endpoint, error) {
	e := u.choose()
	for tried := 1; ; tried++ {
		e.inFlight.Add(1)
		result, err := do(e)
		if err == nil {
			return result, e, nil
		}
		e.Release()
		var dialErr *DialError
		if !errors.As(err, &dialErr) || tried == len(u.endpoints) || ctx.Err() != nil {
			return result, nil, err
		}
		e = u.after(e)
	}
}

// choose draws two endpoints and takes the one with less in flight.
func (u *Upstream) choose() *Endpoint {
	n := len(u.endpoints)
	if n == 1 {
		return u.endpoints[0]
	}
	i := rand.IntN(n)
	j := rand.IntN(n - 1)
	if j >= i {
		j++ // never the same twice
	}
	a, b := u.endpoints[i], u.endpoints[j]
	if b.inFlight.Load() < a.inFlight.Load() {
		return b
	}
	return a
}

// after is the endpoint that follows e. Going round from wherever the choice
// fell tries each once, without remembering which.
func (u *Upstream) after(e *Endpoint) *Endpoint {
	for i, other := range u.endpoints {
		if other == e {
			return u.endpoints[(i+1)%len(u.endpoints)]
		}
	}
	return e
}
