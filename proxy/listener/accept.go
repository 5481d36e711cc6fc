package listener

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

const (
	// acceptPause is how long to wait after an accept that failed for lack of
	// descriptors. The connection stays in the queue meanwhile.
	acceptPause = 10 * time.Millisecond
	// lastAccept bounds an accept of what the kernel has said is queued.
	lastAccept = 10 * time.Millisecond
)

// Server serves one listener of the configuration, on all its worker sockets.
type Server struct {
	cfg       config.Listener
	registry  *Registry
	log       *slog.Logger
	acceptors []*acceptor
	serve     func(*acceptor) // returns when the acceptor has ended
	secure    *Secure         // nil without TLS
	number    int             // in the ledger
	route     uint16          // of a TCP listener, in the ledger

	stop  chan struct{} // closed by StopAccepting
	slots chan struct{} // a token for each connection, nil without a bound
	loops sync.WaitGroup
}

// newServer prepares a server for sockets that are listening TCP sockets.
func newServer(cfg config.Listener, sockets []net.Listener, r *Registry, log *slog.Logger) (*Server, error) {
	s := &Server{cfg: cfg, registry: r, log: log.With("listener", cfg.Name), stop: make(chan struct{})}
	s.number, _ = r.Ledger.Listener(cfg.Name)
	if cfg.MaxConnections > 0 {
		s.slots = make(chan struct{}, cfg.MaxConnections)
	}
	for _, ln := range sockets {
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			return nil, fmt.Errorf("listener %s: %s is no TCP socket", cfg.Name, ln.Addr())
		}
		s.acceptors = append(s.acceptors, &acceptor{TCPListener: tcp, server: s})
	}
	return s, nil
}

// Start runs an accept loop for each worker socket.
func (s *Server) Start() {
	for _, a := range s.acceptors {
		s.loops.Go(func() { s.serve(a) })
	}
}

// StopAccepting accepts what is queued already, closes the sockets and returns
// when every accept loop has ended. Connections live on.
func (s *Server) StopAccepting() {
	close(s.stop)
	for _, a := range s.acceptors {
		a.SetDeadline(time.Now()) // wakes the loop
	}
	s.loops.Wait()
}

func (s *Server) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// acceptor is a worker socket. Its Accept registers each connection, so that
// none exists that the registry does not know.
type acceptor struct {
	*net.TCPListener
	server *Server
}

// Accept returns the next connection, a *Conn. It returns net.ErrClosed once the
// server is stopping and the queue is empty; the socket is closed then.
func (a *acceptor) Accept() (net.Conn, error) {
	s := a.server
	for {
		release := s.takeSlot()
		conn, err := a.acceptOne()
		if err == nil {
			state := New
			if s.cfg.Protocol == config.TCP {
				state = TCP
			}
			c := &Conn{tcp: conn, stream: conn, onClose: release}
			if s.secure != nil {
				c.stream = s.secure.server(conn)
			}
			s.registry.Ledger.Accept(&c.flow, s.number, time.Now())
			return s.registry.add(c, state), nil
		}
		if release != nil {
			release()
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, net.ErrClosed
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue // woken, to look again whether to stop
		}
		s.log.Warn("no connection can be accepted: they wait in the queue", "error", err)
		time.Sleep(acceptPause)
	}
}

// acceptOne waits for a connection, but when the server is stopping it only
// takes what is queued: the first time it finds nothing it closes the socket.
func (a *acceptor) acceptOne() (*net.TCPConn, error) {
	if a.server.stopping() {
		if !a.queued() {
			a.Close()
			return nil, net.ErrClosed
		}
		// The deadline that woke us would fail the accept without a look at the
		// queue. This one is for a client that is gone by then.
		a.SetDeadline(time.Now().Add(lastAccept))
	}
	return a.AcceptTCP()
}

// takeSlot waits for room below max_connections and returns what gives it back.
// At the end there is always room: what is queued then has nowhere else to go.
func (s *Server) takeSlot() (release func()) {
	if s.slots == nil {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }
	case <-s.stop:
		return nil
	}
}

// queued asks the kernel whether a connection waits to be accepted.
func (a *acceptor) queued() bool {
	raw, err := a.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err = unix.Poll(poll, 0); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	return n > 0
}
