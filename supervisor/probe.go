package supervisor

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/judge"
	"github.com/baton-mesh/baton/supervisor/steer"
	"github.com/baton-mesh/baton/supervisor/trace"
)

const (
	// probesEach is how many connections each listener of the candidate gets.
	probesEach = 2
	// probesAtOnce bounds the listeners that are probed at the same time.
	probesAtOnce = 64
	// probeTimeout bounds one of them.
	probeTimeout = 5 * time.Second
	// endsWithin is how long after a probe that failed the candidate's end may be noticed:
	// a process closes its connections a moment before it has ended.
	endsWithin = 100 * time.Millisecond
)

// probe connects to the public addresses as clients do, from ports that the
// steering program sends to the candidate alone, and believes the kernel's
// counters, not the answer, on who was reached.
func (s *Supervisor) probe(ctx context.Context, r *release) error {
	if !s.steering.Chooses() {
		r.result.Evidence = append(r.result.Evidence, "no probe: takeover mode cannot connect to the candidate alone; it was ready by its own word")
		return nil
	}
	by := s.steering.Prober()
	if by == nil {
		return nil
	}
	ctx, stop := s.whileAlive(ctx, r.candidate)
	defer stop()
	probes, probing := errgroup.WithContext(ctx) // ends when all are done
	probes.SetLimit(probesAtOnce)
	asked, reached := sample(r.recipe.config.Listeners)
	for _, conf := range asked {
		probes.Go(func() error {
			if err := s.probeListener(probing, by, r.candidate, conf); err != nil {
				return fmt.Errorf("listener %s: %w", conf.Name, err)
			}
			return nil
		})
	}
	if err := probes.Wait(); err != nil {
		// A connection that was cut may be the first that is heard of its end.
		if r.candidate.process.Ended(endsWithin) {
			<-r.candidate.exited
			return fmt.Errorf("generation %d ended: %s", r.candidate.id, s.exitOf(r.candidate))
		}
		if aborted := context.Cause(ctx); aborted != nil {
			return aborted
		}
		return err
	}
	if err := s.reachAll(ctx, by, r.candidate, reached); err != nil {
		return err
	}
	if err := s.accepted(ctx, r.candidate); err != nil {
		return err
	}
	r.result.Evidence = append(r.result.Evidence, fmt.Sprintf("%d probes answered on %d listeners", probesEach*len(asked), len(asked)))
	if n := len(reached); n > 0 {
		r.result.Evidence = append(r.result.Evidence, fmt.Sprintf("one connection was accepted on each of the other %d listeners", n))
	}
	return nil
}

// whileAlive is a context that ends with the generation, too. What had been queued for
// it goes to somebody else when it dies, or waits for somebody: no probe is to wait with it.
func (s *Supervisor) whileAlive(ctx context.Context, g *generation) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-g.exited:
			cancel(fmt.Errorf("generation %d ended: %s", g.id, s.exitOf(g)))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (s *Supervisor) probeListener(ctx context.Context, by steer.Prober, g *generation, l config.Listener) error {
	if l.HTTP3 {
		if err := s.probeHTTP3(ctx, by, g, l); err != nil {
			return fmt.Errorf("HTTP/3: %w", err)
		}
	}
	if !l.Protocol.HasStreams() {
		return nil // no datagram has an answer that could be waited for
	}
	before, err := by.CountsOf(l)
	if err != nil {
		return err
	}
	each, probing := errgroup.WithContext(ctx)
	for range probesEach {
		each.Go(func() error { return s.probeOnce(probing, by, g, l) })
	}
	if err := each.Wait(); err != nil {
		return err
	}
	after, err := by.CountsOf(l)
	if err != nil {
		return err
	}
	if n := after[reuseport.Probe] - before[reuseport.Probe]; n < probesEach {
		return fmt.Errorf("%d of %d probes reached the candidate", n, probesEach)
	}
	return nil
}

// accepted waits until the candidate has taken what was queued for it: the
// kernel opens connections for a process that is stopped or stuck, too.
func (s *Supervisor) accepted(ctx context.Context, g *generation) error {
	late := time.After(probeTimeout)
	for {
		q, err := s.queueLengths(g.sockets)
		if err != nil || q.ToAccept == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return fmt.Errorf("%d probes were not accepted within %v", q.ToAccept, probeTimeout)
		case <-g.exited:
			return fmt.Errorf("generation %d ended: %s", g.id, s.exitOf(g))
		case <-time.After(queuePoll):
		}
	}
}

// probeSpan begins the span of one connection, which leads to the request's in the candidate.
func (s *Supervisor) probeSpan(ctx context.Context, listener string) (context.Context, func(error)) {
	ctx, span := s.tracer.Start(ctx, "probe connection", oteltrace.WithSpanKind(oteltrace.SpanKindClient), oteltrace.WithAttributes(trace.Listener.String(listener)))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

func (s *Supervisor) probeOnce(ctx context.Context, by steer.Prober, g *generation, l config.Listener) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.patience.Load()))
	defer cancel()
	ctx, end := s.probeSpan(ctx, l.Name)
	defer func() { end(err) }()

	conn, err := dialCandidate(ctx, by, g, l)
	if l.Protocol == config.TCP && errors.Is(err, unix.ECONNRESET) {
		return nil // accepted and ended at once: refused would be ECONNREFUSED
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	// An abort or a candidate that dies ends the probe at once.
	over := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer over()
	switch l.Protocol {
	case config.HTTPS:
		// Whether clients trust the certificate is not the candidate's doing.
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		fallthrough
	case config.HTTP:
		head, err := probeHTTP(ctx, conn)
		if err != nil {
			return err
		}
		g.probed.Add(1)
		return g.claims(head)
	}
	// A stream has no answer of its own to wait for, and when its upstream is
	// down the candidate rightly ends it. That it is accepted, see accepted.
	return nil
}

// dialCandidate opens a connection whose source address is in the probe table
// before its first packet leaves.
func dialCandidate(ctx context.Context, by steer.Prober, g *generation, l config.Listener) (net.Conn, error) {
	to := probeAddress(l)
	var from netip.AddrPort
	d := net.Dialer{Control: func(network, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { from, inner = claimSource(int(fd), to) })
		if err = errors.Join(err, inner); err != nil {
			return err
		}
		g.dialed.add(l.Name)
		return by.Steer(from, g.slot)
	}}
	d.SetMultipathTCP(false)
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		if from.IsValid() {
			err = errors.Join(err, by.Unsteer(from))
		}
		return nil, err
	}
	return &steeredConn{conn, func() error { return by.Unsteer(from) }, false}, nil
}

// steeredConn is a probe's connection. Its source stays in the probe table until there
// was an answer, or until it is closed: behind a SYN cookie the last segment of the
// handshake asks the program once more, and it may come after connect(2) has returned.
// Not longer: where the candidate has closed first the port is free with our close, and
// the next to have it may be a client.
type steeredConn struct {
	net.Conn
	unsteer  func() error
	answered bool
}

func (c *steeredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.answered = c.answered || n > 0
	return n, err
}

func (c *steeredConn) Close() error {
	if c.answered {
		err := c.unsteer()
		return errors.Join(err, c.Conn.Close())
	}
	return errors.Join(c.Conn.Close(), c.unsteer())
}

// claimSource binds the socket to the address the kernel would choose anyway
// and to a free port, and returns both.
func claimSource(fd int, to netip.AddrPort) (netip.AddrPort, error) {
	local := to.Addr().Unmap() // a host reaches its own address from that address
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: local.As16()}
	if local.Is4() {
		sa = &unix.SockaddrInet4{Addr: local.As4()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return netip.AddrPort{}, fmt.Errorf("bind the probe to %s: %w", local, err)
	}
	// After the bind, which must not share a port: what is left of the probe in
	// TIME_WAIT then keeps no listener from this address.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return netip.AddrPort{}, fmt.Errorf("setsockopt: %w", err)
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch got := got.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(local, uint16(got.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(local, uint16(got.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("the probe's socket has an address of type %T", got)
}

// probeHTTP passes on any whole response (docs/decisions/007). What the routes behind answer is no
// verdict on the candidate: the release that mends them would be refused.
func probeHTTP(ctx context.Context, conn net.Conn) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+conn.RemoteAddr().String()+"/", nil)
	if err != nil {
		return nil, err
	}
	prepareProbe(ctx, req)
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errors.New("it was connected, and no answer came in time")
	}
	if err != nil {
		return nil, fmt.Errorf("read the response: %w", err)
	}
	defer resp.Body.Close()
	return resp.Header, wholeBody(resp)
}

// prepareProbe says of a request that it is a probe, and of which trace.
func prepareProbe(ctx context.Context, req *http.Request) {
	req.Header.Set("User-Agent", "baton-probe")
	req.Header.Set("Baton-Probe", "1")
	otel.GetTextMapPropagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
}

func wholeBody(resp *http.Response) error {
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("read the response's body: %w", err)
	}
	return nil
}

// claims compares what a generation says of itself with what it was told. Only
// of servers that know of Baton: another may pass on what an upstream says.
func (g *generation) claims(head http.Header) error {
	if !g.recipe.config.Proxy.Baton {
		return nil
	}
	for name, want := range map[string]uint64{"Baton-Generation": g.id, "Baton-Server-Id": uint64(g.recipe.config.Node.ServerID)} {
		if got := head.Get(name); got != "" && got != strconv.FormatUint(want, 10) {
			return fmt.Errorf("%w: it says %s %s, and is %d", judge.ErrIdentity, name, got, want)
		}
	}
	return nil
}

// probeAddress is where a probe connects to reach a listener: its own address,
// or loopback where it listens on all of them.
func probeAddress(l config.Listener) netip.AddrPort {
	addr := l.AddrPort()
	switch {
	case !addr.Addr().IsUnspecified():
		return addr
	case addr.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
	}
}
