package h3

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

// flow is a connection from its first packet to its end.
type flow struct {
	set      *flows
	conn     atomic.Pointer[quic.Conn] // nil while the client has sent its first flight only
	requests atomic.Int64              // in flight
	complete atomic.Bool               // its handshake
	told     atomic.Bool               // we have closed it
	cut      atomic.Bool               // under its requests
	account  ledger.Flow

	mu             sync.Mutex
	entered, ended bool // its account was begun; its connection has closed
}

// flows are the connections of a server.
type flows struct {
	cut        atomic.Int64
	idleClosed atomic.Int64

	most int // 0: no bound

	mu     sync.Mutex
	all    map[*flow]struct{}
	sealed bool          // none will be added
	empty  chan struct{} // closed when sealed and all is empty
}

type flowKey struct{}

func flowOf(c *quic.Conn) *flow { return c.Context().Value(flowKey{}).(*flow) }

// add begins a flow; nil once the set is sealed, or full.
func (s *flows) add() *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed || s.most > 0 && len(s.all) >= s.most {
		return nil
	}
	f := &flow{set: s}
	s.all[f] = struct{}{}
	return f
}

// end is called when the connection has closed, or its handshake has failed.
func (f *flow) end() {
	f.mu.Lock()
	f.ended = true
	f.leave()
	f.mu.Unlock()
	f.set.mu.Lock()
	defer f.set.mu.Unlock()
	delete(f.set.all, f)
	f.set.closeIfEmpty()
}

// Begin says that a request has arrived: of a connection that was told to go,
// quic-go has refused it.
func (f *flow) Begin() bool { return true }

// Flow is the connection's account.
func (f *flow) Flow() *ledger.Flow { return &f.account }

// Cut reports whether the last call has ended requests of the connection.
func (f *flow) Cut() bool { return f.cut.Load() }

// enter begins the account in a ledger, once.
func (f *flow) enter(w *ledger.Writer, listener int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.entered {
		f.entered = true
		w.Accept(&f.account, listener, time.Now())
		f.leave()
	}
}

// leave ends the account of a connection that has closed. One that neither side
// closed did not end in peace: it was reset, or timed out. f.mu is held.
func (f *flow) leave() {
	if !f.entered || !f.ended {
		return
	}
	var closed *quic.ApplicationError
	f.account.Close(!errors.As(context.Cause(f.conn.Load().Context()), &closed))
}

// seal says that no connection will be added.
func (s *flows) seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = true
	s.closeIfEmpty()
}

func (s *flows) closeIfEmpty() {
	if !s.sealed || len(s.all) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

func (s *flows) snapshot() []*flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*flow, 0, len(s.all))
	for f := range s.all {
		all = append(all, f)
	}
	return all
}

// handshakes is how many are under way.
func (s *flows) handshakes() int {
	n := 0
	for _, f := range s.snapshot() {
		if !f.complete.Load() {
			n++
		}
	}
	return n
}

func (s *flows) counts() (c listener.Counts) {
	for _, f := range s.snapshot() {
		switch requests := int(f.requests.Load()); {
		case requests > 0:
			c[listener.Active] += requests
		case !f.complete.Load():
			c[listener.New]++
		default:
			c[listener.Idle]++
		}
	}
	return c
}
