package demo

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Load is a set of clients that run one operation after another. The zero value
// of each field but the addresses works.
type Load struct {
	// HTTP and TCP are the host:port of the listeners the clients connect to. Empty: no such clients.
	HTTP, TCP string
	// Dial opens a connection to one of them. Defaults to doing so from this
	// process; a test may have its clients on another host.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Clients is how many of a kind run at the same time. A kind that is absent
	// has as many as [DefaultClients] says.
	Clients map[Kind]int
	// Pause is the time between two short operations of a client. Defaults to 20 ms.
	Pause time.Duration
	// Stream is the shortest time of a long operation; the longest is half as long again. Defaults to 2 s.
	Stream time.Duration
	// Slow is the shortest time of a short operation that is slow by intent; the
	// longest is half as long again. Defaults to 250 ms.
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
	HTTPNew: 5, HTTPKeepAlive: 7, WebSocket: 4, Upload: 3, Download: 3, TCP: 4, TCPNew: 4,
}

const slowClients = 3

// longIdle is the pause of one keep-alive client: a connection that lies unused
// while generations come and go must still be told before it is closed.
const longIdle = time.Second

// client is one client; operations run one at a time.
type client struct {
	web, raw string
	connect  func(ctx context.Context, address string) (net.Conn, error)
	idle     *httpConn // of a keep-alive client, between two requests
}

var operations = map[Kind]func(*client, *attempt) error{
	HTTPNew:       (*client).httpNew,
	HTTPKeepAlive: (*client).httpKeepAlive,
	WebSocket:     (*client).webSocket,
	Upload:        (*client).upload,
	Download:      (*client).download,
	TCP:           (*client).tcp,
	TCPNew:        (*client).tcpNew,
}

func (k Kind) short() bool { return k == HTTPNew || k == HTTPKeepAlive || k == TCPNew }
func (k Kind) raw() bool   { return k == TCP || k == TCPNew }

// Run keeps the clients busy until ctx is done, lets each finish what it has
// begun, and returns when all have.
func (l *Load) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for _, kind := range Kinds {
		if kind.raw() && l.TCP == "" || !kind.raw() && l.HTTP == "" {
			continue
		}
		n, ok := l.Clients[kind]
		if !ok {
			n = DefaultClients[kind]
		}
		for i := range n {
			running.Go(func() { l.runClient(ctx, kind, i) })
		}
	}
}

func (l *Load) client() *client {
	c := &client{web: l.HTTP, raw: l.TCP, connect: l.Dial}
	if c.connect == nil {
		c.connect = dialTCP
	}
	return c
}

func (l *Load) runClient(ctx context.Context, kind Kind, index int) {
	c := l.client()
	defer c.close()
	pause := cmp.Or(l.Pause, 20*time.Millisecond)
	slow := kind.short() && index < slowClients
	switch {
	case slow:
		pause = 0
	case kind == HTTPKeepAlive && index == slowClients:
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
			least := cmp.Or(l.Slow, 250*time.Millisecond)
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
