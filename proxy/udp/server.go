// Package udp relays datagrams between clients and upstreams, flow by flow.
//
// A flow is a client's address as one worker socket sees it. It has a socket of
// its own towards the upstream, so that what comes back there is its client's.
// Nothing tells the end of a flow but silence: after the listener's idle_timeout
// it is forgotten, or some seconds later where an answer may be on its way. Whoever
// steers datagrams to generations remembers flows for as long (bpf/reuseport), and
// no longer.
package udp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

// DialFunc connects to the upstream of a new flow. The release it returns is
// called when the flow has ended.
type DialFunc func(context.Context) (conn *net.UDPConn, release func(), err error)

// Account is where flows are counted: in a ledger, as one stream each. Its zero value
// keeps none.
type Account struct {
	Ledger *ledger.Writer
	Route  uint16 // that flows go by, see [ledger.Writer.Route]
}

// receivePause is how long to wait after a failure to receive, which nothing that a
// client sends can cause.
const receivePause = 10 * time.Millisecond

// answerWait is how long a flow is kept at least when the last datagram was the
// client's: an idle_timeout that is shorter ends flows that nobody has left.
const answerWait = 10 * time.Second

// clockSlack is how much longer a flow is known here than to whoever steers, whose
// clock goes by the jiffy, 10 ms at most: what is still led here finds its flow.
const clockSlack = 20 * time.Millisecond

// maxDatagram is the longest datagram of UDP, with room to spare.
const maxDatagram = 64 << 10

// Server relays what comes to the worker sockets of one listener. It lives as
// package listener's do: Start, Drain, LastCall.
type Server struct {
	cfg     config.Listener
	dial    DialFunc
	account Account
	number  int // of the listener in the ledger
	log     *slog.Logger
	workers []*worker

	stopping atomic.Bool
	cut      atomic.Int64
	idle     atomic.Int64
	loops    sync.WaitGroup

	mu    sync.Mutex
	flows map[flowID]*flow
	empty chan struct{} // closed when stopping and no flow is left
	over  chan struct{} // closed by LastCall
}

type worker struct {
	server *Server
	socket *net.UDPConn
	anyIP  bool      // bound to every address: an answer has to leave from the one it is to
	rest   chan bool // gets, for each deadline set on the socket, whether anything is queued
}

// New takes the sockets, which are the server's from now on.
func New(cfg config.Listener, sockets []*net.UDPConn, dial DialFunc, account Account, log *slog.Logger) *Server {
	s := &Server{
		cfg: cfg, dial: dial, account: account, log: log.With("listener", cfg.Name),
		flows: make(map[flowID]*flow), empty: make(chan struct{}), over: make(chan struct{}),
	}
	s.number, _ = account.Ledger.Listener(cfg.Name + contract.UDPSuffix)
	for _, socket := range sockets {
		w := &worker{server: s, socket: socket, rest: make(chan bool, 1)}
		if at := socket.LocalAddr().(*net.UDPAddr).AddrPort(); at.Addr().IsUnspecified() {
			w.anyIP = askForAddress(socket, at.Addr().Is6()) == nil
		}
		s.workers = append(s.workers, w)
	}
	return s
}

// askForAddress makes the kernel tell with each datagram which of the host's
// addresses it was sent to (ip(7), ipv6(7)).
func askForAddress(socket *net.UDPConn, v6 bool) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			return
		}
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
	if err == nil {
		err = failed
	}
	return err
}

// Start relays from now on.
func (s *Server) Start() {
	for _, w := range s.workers {
		s.loops.Go(w.receive)
	}
	s.loops.Go(s.forget)
}

// receive reads the clients' datagrams until the socket is closed.
func (w *worker) receive() {
	b, oob := make([]byte, maxDatagram), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		n, k, _, from, err := w.socket.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			if w.server.ended() {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				w.socket.SetReadDeadline(time.Time{})
				w.rest <- w.queued()
				continue
			}
			w.server.log.Warn("receive", "error", err)
			time.Sleep(receivePause)
			continue
		}
		f, err := w.server.flowOf(w, from, oob[:k])
		if err != nil {
			w.server.log.Debug("relay datagrams", "client", from, "error", err)
			continue
		}
		if f == nil {
			continue // no room; datagrams may be lost
		}
		f.upstream.Write(b[:n])
	}
}

// flowOf finds or begins the flow of a client's datagram; nil where there is no
// room for another.
func (s *Server) flowOf(w *worker, from netip.AddrPort, info []byte) (*flow, error) {
	id := flowID{w, from}
	s.mu.Lock()
	f, known := s.flows[id]
	if known {
		f.ask()
	}
	full := s.cfg.MaxConnections > 0 && len(s.flows) >= s.cfg.MaxConnections
	s.mu.Unlock()
	if known || full {
		return f, nil
	}
	f = &flow{server: s, id: id, begun: time.Now()}
	upstream, release, err := s.dial(context.Background())
	if err != nil {
		f.enter()
		f.leave(ledger.Record{Key: ledger.Key{Class: ledger.Failed}, Error: "upstream-connect"})
		return nil, err
	}
	f.upstream, f.release = upstream, release
	if w.anyIP {
		f.info = answerInfo(info)
	}
	f.ask()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended() {
		upstream.Close()
		release()
		return nil, nil
	}
	f.enter()
	s.flows[id] = f
	s.loops.Go(f.answer)
	return f, nil
}

// queued reports whether a datagram waits in the worker's socket.
func (w *worker) queued() (yes bool) {
	raw, err := w.socket.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) { // which no deadline hinders
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		yes = n > 0 || err != nil
	})
	return yes
}

// nothingQueued asks each worker, between two datagrams. One that is at the first
// datagram of a flow answers when the flow is known.
func (s *Server) nothingQueued() bool {
	for _, w := range s.workers {
		w.socket.SetReadDeadline(started) // any time that has passed
		select {
		case queued := <-w.rest:
			if queued {
				return false
			}
		case <-s.over:
			return false
		}
	}
	return true
}

// forget ends the flows that have been silent for the listener's idle_timeout.
func (s *Server) forget() {
	timeout := s.cfg.IdleTimeout
	look := time.NewTicker(max(min(timeout/10, time.Second), 10*time.Millisecond))
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-s.over:
			return
		}
		for _, f := range s.snapshot() {
			f.expire(timeout)
		}
		s.endIfEmpty()
	}
}

func (s *Server) snapshot() []*flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*flow, 0, len(s.flows))
	for _, f := range s.flows {
		all = append(all, f)
	}
	return all
}

func (s *Server) ended() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// Drain ends nothing: new flows are led elsewhere, and those that are here end
// in silence.
func (s *Server) Drain(time.Duration) { s.stopping.Store(true) }

// endIfEmpty ends a drain when no flow is left and none can begin. Datagrams that
// came before others were led elsewhere may wait still, in a socket or with a worker
// that dials: for their clients this server is the only one. A flow that was known is
// none of theirs, so the sockets are asked last.
func (s *Server) endIfEmpty() {
	none := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.flows) == 0
	}
	if s.stopping.Load() && none() && s.nothingQueued() && none() {
		s.closeEmpty()
	}
}

func (s *Server) closeEmpty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// Empty is closed when the server drains and its last flow has fallen silent.
func (s *Server) Empty() <-chan struct{} { return s.empty }

// Counts says what the flows are doing.
func (s *Server) Counts() (c listener.Counts) {
	for _, f := range s.snapshot() {
		if f.silent() < quiet {
			c[listener.UDP]++
		} else {
			c[listener.Idle]++
		}
	}
	return c
}

// Tally is what the last call has done so far.
func (s *Server) Tally() listener.Tally {
	return listener.Tally{Cut: s.cut.Load(), IdleClosed: s.idle.Load()}
}

// quiet is the silence after which a flow counts as idle.
const quiet = time.Second

// LastCall ends every flow and frees the sockets. What a client sends then begins
// a flow with the generation that has the others. It does not wait: datagrams
// have no end to wait for. A flow on which something moved within the last second
// counts as cut.
func (s *Server) LastCall(time.Duration) {
	cut := map[*flow]bool{}
	for _, f := range s.snapshot() {
		if f.silent() < quiet {
			cut[f] = true
		} else {
			s.idle.Add(1)
		}
	}
	s.cut.Add(int64(len(cut)))
	s.account.Ledger.Cut(len(cut))
	s.mu.Lock()
	close(s.over) // under the lock: no flow is added after it
	s.stopping.Store(true)
	s.mu.Unlock()
	for _, f := range s.snapshot() {
		f.close(cut[f])
	}
	for _, w := range s.workers {
		w.socket.Close()
	}
	s.loops.Wait()
	s.closeEmpty()
}
