package demo

import (
	"cmp"
	"context"
	"crypto/x509"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Load is a set of clients that run one operation after another. The zero value
// of each field but the addresses works.
type Load struct {
	// HTTP, HTTPS and TCP are the host:port of the listeners the clients connect to. Empty: no such clients.
	HTTP, HTTPS, TCP string
	// HTTP3 and UDP are those of clients that send datagrams, always from this process.
	HTTP3, UDP string
	// Roots are what the certificate of HTTPS is verified by.
	Roots *x509.CertPool
	// Dial opens a connection to one of them. Defaults to doing so from this
	// process; a test may have its clients on another host.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// ForgivesSessions lets a server forget sessions that it has given tickets for.
	ForgivesSessions bool
	// Kinds are those that run. Empty: all that have an address.
	Kinds []Kind
	// Clients is how many of a kind run at the same time. A kind that is absent
	// has as many as [DefaultClients] says.
	Clients map[Kind]int
	// Pause is the time between two short operations of a client. Defaults to 20 ms.
	Pause time.Duration
	// Stream is the shortest time of a long operation; the longest is half as long again. Defaults to 2 s.
	Stream time.Duration
	// Slow is the shortest time of a short operation that is slow by intent; the
	// longest is half as long again. Defaults to 500 ms.
	Slow time.Duration

	mu  sync.Mutex
	ops []Op
	sum Counts
}

// Counts is how many operations have ended, and how.
type Counts struct{ OK, Failed, Cut int }

// DefaultClients is the number of clients of each kind. The first three of a
// short kind take [Load.Slow] for each operation without a pause between them, so
// that some operation of the kind is under way at any instant a shift may come.
var DefaultClients = map[Kind]int{
	HTTPNew: 5, HTTPKeepAlive: 7, HTTPSNew: 4, HTTPSKeepAlive: 5, H2New: 4, H2: 6, H2C: 5, GRPC: 5, GRPCStream: 4,
	Events: 4, WebSocket: 4, Upload: 3, Download: 3, TCP: 4, TCPNew: 4,
	H3New: 4, H3: 5, UDP: 4,
}

const slowClients = 3

// longIdle is the pause of one client of each kind that keeps its connection: one
// that lies unused while generations come and go must still be told before it is
// closed.
const longIdle = time.Second

// client is one client; operations run one at a time.
type client struct {
	web, tlsWeb, raw string
	http3, udp       string
	roots            *x509.CertPool
	connect          func(ctx context.Context, address string) (net.Conn, error)
	idle             *httpConn // of a keep-alive client, between two requests
	quic             *h3Client // of a client that keeps its connection of HTTP/3

	// For HTTP/2 of all clients of a kind, otherwise the client's own.
	shared  *h2Pair
	tickets *tickets
	forgive bool
}

var operations = map[Kind]func(*client, *attempt) error{
	HTTPNew:        func(c *client, a *attempt) error { return c.httpNew(a, false) },
	HTTPKeepAlive:  func(c *client, a *attempt) error { return c.httpKeepAlive(a, false) },
	HTTPSNew:       func(c *client, a *attempt) error { return c.httpNew(a, true) },
	HTTPSKeepAlive: func(c *client, a *attempt) error { return c.httpKeepAlive(a, true) },
	H2New:          func(c *client, a *attempt) error { return c.onHTTP2(a, true, true) },
	H2:             func(c *client, a *attempt) error { return c.onHTTP2(a, true, false) },
	H2C:            func(c *client, a *attempt) error { return c.onHTTP2(a, false, false) },
	GRPC:           (*client).grpcCall,
	GRPCStream:     (*client).grpcChat,
	Events:         (*client).events,
	WebSocket:      (*client).webSocket,
	Upload:         (*client).upload,
	Download:       (*client).download,
	TCP:            (*client).tcp,
	TCPNew:         (*client).tcpNew,
	H3New:          (*client).http3New,
	H3:             (*client).http3Kept,
	UDP:            (*client).udpFlow,
}

// short kinds are slow by intent only in their first clients.
func (k Kind) short() bool {
	switch k {
	case GRPCStream, Events, WebSocket, Upload, Download, TCP, UDP:
		return false
	}
	return true
}

// shares reports whether the clients of the kind use a connection at the same
// time, except the one that leaves its own idle.
func (k Kind) shares() bool { return k == H2 || k == H2C || k == GRPC || k == GRPCStream }

// keeps reports whether a client of the kind uses a connection again.
func (k Kind) keeps() bool {
	return k.shares() && k.short() || k == HTTPKeepAlive || k == HTTPSKeepAlive || k == H3
}

// address is the listener that the clients of a kind cannot do without.
func (l *Load) address(k Kind) string {
	switch k {
	case HTTPSNew, HTTPSKeepAlive, H2New, H2:
		return l.HTTPS
	case TCP, TCPNew:
		return l.TCP
	case H3New, H3:
		return l.HTTP3
	case UDP:
		return l.UDP
	}
	return l.HTTP
}

// Run keeps the clients busy until ctx is done, lets each finish what it has
// begun, and returns when all have.
func (l *Load) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	kinds := l.Kinds
	if len(kinds) == 0 {
		kinds = slices.Concat(Kinds, DatagramKinds)
	}
	for _, kind := range kinds {
		if l.address(kind) == "" {
			continue
		}
		n, ok := l.Clients[kind]
		if !ok {
			n = DefaultClients[kind]
		}
		running.Go(func() {
			first := l.client()
			defer first.close()
			var clients sync.WaitGroup
			for i := range n {
				c := l.client()
				defer c.close() // when all have ended, for some share what it closes
				if kind.shares() && i != slowClients {
					c.shared, c.tickets = first.shared, first.tickets
				}
				clients.Go(func() { l.runClient(ctx, kind, i, c) })
			}
			clients.Wait()
		})
	}
}

func (l *Load) client() *client {
	c := &client{web: l.HTTP, tlsWeb: l.HTTPS, raw: l.TCP, http3: l.HTTP3, udp: l.UDP, roots: l.Roots, connect: l.Dial, shared: new(h2Pair), tickets: newTickets(), forgive: l.ForgivesSessions}
	if c.connect == nil {
		c.connect = dialTCP
	}
	return c
}

func (l *Load) runClient(ctx context.Context, kind Kind, index int, c *client) {
	pause := cmp.Or(l.Pause, 20*time.Millisecond)
	slow := kind.short() && index < slowClients
	switch {
	case slow:
		pause = 0
	case kind.keeps() && index == slowClients:
		pause = longIdle
	}
	stream := cmp.Or(l.Stream, 2*time.Second)

	// Clients that begin together would stay in step, and a shift would find
	// all of them at the same point.
	wait := rand.N(max(pause, slowTick))
	for {
		// Without a pause both are ready in the end, and select would toss a coin.
		if sleep(ctx, wait) != nil || ctx.Err() != nil {
			return
		}
		a := attempt{seed: rand.Uint32(), slow: slow}
		switch {
		case slow:
			// Of different lengths, for clients in step would all pause at once.
			least := cmp.Or(l.Slow, 500*time.Millisecond)
			a.long = least + rand.N(least/2)
		case !kind.short():
			a.long = stream + rand.N(stream/2)
		}
		op := c.run(kind, a)
		l.record(op)
		wait = pause
		if op.Err != nil {
			// A server that refuses everything must not be hammered.
			wait = max(wait, 100*time.Millisecond)
		}
	}
}

// Burst runs n short operations of a kind at the same time, each as the first of
// a client of its own, and returns when all have ended.
func (l *Load) Burst(kind Kind, n int) {
	var running sync.WaitGroup
	defer running.Wait()
	for range n {
		running.Go(func() {
			c := l.client()
			defer c.close()
			l.record(c.run(kind, attempt{seed: rand.Uint32()}))
		})
	}
}

// run runs one operation.
func (c *client) run(kind Kind, a attempt) Op {
	a.Kind, a.Start = kind, time.Now()
	a.Err = operations[kind](c, &a)
	a.End = time.Now()
	return a.Op
}

func (c *client) close() {
	if c.idle != nil {
		c.idle.Close()
	}
	c.quic.close()
	c.shared.close()
}

func (l *Load) record(op Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, op)
	switch {
	case op.Failed():
		l.sum.Failed++
	case op.Cut():
		l.sum.Cut++
	default:
		l.sum.OK++
	}
}

// Counts is the sum of what has ended so far.
func (l *Load) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sum
}

// Ops is every operation that has ended so far, in that order. The caller must
// not change it.
func (l *Load) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ops[:len(l.ops):len(l.ops)]
}
