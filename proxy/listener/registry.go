// Package listener accepts connections and knows each of them until it is closed.
//
// The Registry is exact: a connection is in it from the accept to the close,
// with what it is doing. A generation has drained when its registry is empty
// and nothing is left to accept; nothing else decides that. (net/http's own
// Shutdown forgets upgraded connections and closes idle ones under clients
// that may be writing, so it is never called.)
package listener

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// State is what a connection is doing.
type State int32

// The states of a connection.
const (
	New       State = iota // accepted; nothing of a request has arrived
	Active                 // a request is arriving or being answered
	Idle                   // between requests
	Upgraded               // a protocol of its own after 101
	WebSocket              // the same, and we know its frames
	TCP                    // a relayed stream
	UDP                    // a relayed flow of datagrams
	leaving                // told to leave; what still arrives is not served
	numStates
)

// Counts is the number of connections in each state. Of those in use that speak
// HTTP/2 it is their requests that count.
type Counts [numStates]int

// String is the counts as "3 requests, 2 idle", leaving out what there is none of.
func (c Counts) String() string {
	var parts []string
	for i, name := range [numStates]string{"new", "requests", "idle", "upgraded", "websocket", "tcp", "udp", "leaving"} {
		if c[i] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c[i], name))
		}
	}
	if parts == nil {
		return "nothing left"
	}
	return strings.Join(parts, ", ")
}

// Registry holds the open connections of a generation.
type Registry struct {
	// Jitter draws a delay below limit, spreading what happens at the last
	// call. Defaults to an even draw.
	Jitter func(limit time.Duration) time.Duration

	// Ledger gets the account of each connection. Nil keeps none.
	Ledger *ledger.Writer

	// From draining on, connections that speak HTTP/2 are asked to go.
	draining atomic.Bool
	// After lastCall no connection stays idle, and upgraded ones are told to go.
	lastCall   atomic.Bool
	window     time.Duration // set before lastCall
	cut        atomic.Int64
	idleClosed atomic.Int64

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	sealed bool
	empty  chan struct{} // closed when sealed and conns is empty
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{
		Jitter: func(limit time.Duration) time.Duration { return rand.N(limit + 1) },
		conns:  make(map[*Conn]struct{}),
		empty:  make(chan struct{}),
	}
}

// add registers an accepted connection.
func (r *Registry) add(c *Conn, state State) *Conn {
	c.registry = r
	c.state.Store(int32(state))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	return c
}

func (r *Registry) remove(c *Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	r.closeIfEmpty()
}

// goodbyeEach is how far apart clients are asked to go, on average: a new TLS
// connection costs about this much of a processor.
const goodbyeEach = time.Millisecond

// Drain asks the clients that speak HTTP/2 to go when they have what they came
// for. Those that speak HTTP/1 are told by their next response. It returns at
// once; the clients are asked within window.
func (r *Registry) Drain(window time.Duration) {
	r.draining.Store(true) // before the snapshot: what it misses sees this
	var sessions []*session
	for _, c := range r.snapshot() {
		if h := c.h2.Load(); h != nil {
			sessions = append(sessions, h)
		}
	}
	window = min(window, time.Duration(len(sessions))*goodbyeEach)
	for _, h := range sessions {
		time.AfterFunc(r.Jitter(window), h.goAway)
	}
}

// Seal says that nothing more will be accepted.
func (r *Registry) Seal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sealed = true
	r.closeIfEmpty()
}

func (r *Registry) closeIfEmpty() {
	if !r.sealed || len(r.conns) > 0 {
		return
	}
	select {
	case <-r.empty:
	default:
		close(r.empty)
	}
}

// Empty is closed when the registry is sealed and the last connection has closed.
func (r *Registry) Empty() <-chan struct{} { return r.empty }

// Counts says what the open connections are doing.
func (r *Registry) Counts() Counts {
	var counts Counts
	for _, c := range r.snapshot() {
		state, n := c.State(), 1
		if h := c.h2.Load(); h != nil && state == Active {
			n = h.streams() // each is a request
		}
		counts[state] += n
	}
	return counts
}

func (r *Registry) snapshot() []*Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	conns := make([]*Conn, 0, len(r.conns))
	for c := range r.conns {
		conns = append(conns, c)
	}
	return conns
}
