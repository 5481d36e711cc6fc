package h3

import (
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/proxy/listener"
)

const (
	// settle is how long a drain waits at least for handshakes that the kernel
	// has led here: the second half of a first flight, a retransmission.
	settle = time.Second
	// settleMost is how long at most: twice handshakeIdle is the end of a handshake.
	settleMost = 2 * handshakeIdle
	settleLook = 20 * time.Millisecond
	// farewell is how long a closed connection repeats its close to a client that
	// has not heard it: three probe timeouts (RFC 9000, section 10.2).
	farewell = time.Second
)

// Drain lets handshakes finish, then asks every client to open no more requests
// (GOAWAY, RFC 9114 section 5.2). It returns at once. Clients close their
// connections when their requests are done; Empty tells when the last has.
func (s *Server) Drain(time.Duration) {
	s.loops.Go(func() {
		s.settle()
		s.flows.seal()
		// Ends the accept loops and sends the goodbyes, then waits for the clients;
		// at the end of its context it closes what is left, and waits for our
		// handlers however long they take. So nobody waits for it: Empty and
		// LastCall know the end, and with a bound.
		go s.http.Shutdown(s.lastCall)
	})
}

// settle returns when no handshake is under way.
func (s *Server) settle() {
	start := time.Now()
	look := time.NewTicker(settleLook)
	defer look.Stop()
	for {
		if took := time.Since(start); took >= settleMost || took >= settle && s.flows.handshakes() == 0 {
			return
		}
		select {
		case <-look.C:
		case <-s.lastCall.Done():
			return
		}
	}
}

// Empty is closed when the server drains and its last connection has closed.
func (s *Server) Empty() <-chan struct{} { return s.flows.empty }

// Tally is what the last call has done so far.
func (s *Server) Tally() listener.Tally {
	return listener.Tally{Cut: s.flows.cut.Load(), IdleClosed: s.flows.idleClosed.Load()}
}

// LastCall closes idle connections, gives requests until the end of the window,
// closes what is left and frees the sockets. A request that it ends counts as cut.
func (s *Server) LastCall(window time.Duration) {
	end := time.After(window)
	look := time.NewTicker(settleLook)
	defer look.Stop()
	for waiting := true; waiting; {
		s.closeFlows(func(requests int64) bool { return requests == 0 })
		select {
		case <-s.flows.empty:
			waiting = false
		case <-end:
			waiting = false
		case <-look.C:
		}
	}
	s.flows.seal()
	if s.closeFlows(func(int64) bool { return true }) || s.closed.Load() {
		time.Sleep(farewell)
	}
	s.close()
	s.loops.Wait()
	select { // until each has left its account
	case <-s.flows.empty:
	case <-time.After(farewell):
	}
}

// closeFlows tells the clients of some connections that they are closed, and
// reports whether there was one.
func (s *Server) closeFlows(which func(requests int64) bool) (any bool) {
	for _, f := range s.flows.snapshot() {
		requests, conn := f.requests.Load(), f.conn.Load()
		if conn == nil || !f.complete.Load() || !which(requests) || f.told.Swap(true) {
			continue
		}
		any = true
		if requests == 0 {
			s.flows.idleClosed.Add(1)
		} else {
			f.cut.Store(true)
			s.flows.cut.Add(requests)
			s.opts.Ledger.Cut(int(requests))
		}
		conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
		s.closed.Store(true)
	}
	return any
}
