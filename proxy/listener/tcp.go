package listener

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// DialFunc connects to the upstream of a new stream. The release it returns is
// called when the stream has ended and the connection is closed.
type DialFunc func(context.Context) (conn *net.TCPConn, release func(), err error)

// NewTCP relays each connection on sockets to what dial connects to. In the
// ledger they are of the route.
func NewTCP(cfg config.Listener, sockets []net.Listener, r *Registry, route uint16, dial DialFunc, log *slog.Logger) (*Server, error) {
	s, err := newServer(cfg, sockets, r, log)
	if err != nil {
		return nil, err
	}
	s.route = route
	s.serve = func(a *acceptor) {
		for {
			conn, err := a.Accept()
			if err != nil {
				return
			}
			go s.relay(conn.(*Conn), dial)
		}
	}
	return s, nil
}

func (s *Server) relay(client *Conn, dial DialFunc) {
	defer client.Close()
	start := time.Now()
	call, record := client.flow.Begin(start), ledger.Record{Key: ledger.Key{Route: s.route, Protocol: ledger.TCP, Class: ledger.Ended}}
	defer func() {
		if client.Cut() {
			record.Flags |= ledger.Anomalous
		}
		call.End(&record, time.Since(start))
	}()
	upstream, release, err := dial(context.Background())
	if err != nil {
		s.log.Warn("relay", "error", err)
		client.tcp.SetLinger(0) // a reset: an empty answer would be a lie
		client.reset.Store(true)
		record.Class, record.Error = ledger.Failed, "upstream-connect"
		return
	}
	defer release()
	record.Client, record.Upstream = client.RemoteAddr().String(), upstream.RemoteAddr().String()
	defer upstream.Close()
	if s.cfg.IdleTimeout > 0 {
		stop := watchIdle(s.cfg.IdleTimeout, client.tcp, upstream)
		defer stop()
	}
	// Both ends are TCPConns, and so the bytes stay in the kernel (splice).
	done := make(chan error, 1)
	go func() { done <- pass(upstream, client.tcp) }()
	err = errors.Join(pass(client.tcp, upstream), <-done)
	if errors.Is(err, syscall.ECONNRESET) {
		// An abort on one side must not look like a clean end on the other.
		client.tcp.SetLinger(0)
		client.reset.Store(true)
		upstream.SetLinger(0)
	}
}

// pass copies src to dst up to its end, and passes that on too. A direction that
// fails takes the other with it.
func pass(dst, src *net.TCPConn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		return ignoreNotConnected(dst.CloseWrite())
	}
	past := time.Now()
	dst.SetDeadline(past)
	src.SetDeadline(past)
	return err
}

// ignoreNotConnected: a peer that has reset its side needs no end of stream.
func ignoreNotConnected(err error) error {
	if errors.Is(err, syscall.ENOTCONN) {
		return nil
	}
	return err
}

// watchIdle closes both connections when nothing has moved on them for limit.
//
// It asks the kernel how many bytes have moved. Deadlines would need each byte
// to pass through here, or else take a slow reader for an idle one.
func watchIdle(limit time.Duration, a, b *net.TCPConn) (stop func()) {
	const checks = 4 // in a limit: the close comes up to a quarter late
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ticker := time.NewTicker(max(limit/checks, time.Millisecond))
		defer ticker.Stop()
		last, since := moved(a)+moved(b), time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if now := moved(a) + moved(b); now != last {
				last, since = now, time.Now()
			} else if time.Since(since) >= limit {
				a.Close()
				b.Close()
				return
			}
		}
	}()
	return cancel
}

// moved is the number of bytes received, and sent and acknowledged, on conn.
func moved(conn *net.TCPConn) uint64 {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	var n uint64
	raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Bytes_received + info.Bytes_acked
		}
	})
	return n
}
