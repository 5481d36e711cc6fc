package packetpath

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/tests/node"
)

// connection is a long-lived one of a client to the VIP.
type connection interface {
	// exchange sends octets and wants them back, until the deadline.
	exchange(deadline time.Time) error
	// node is the name of who answered first.
	node() string
	close()
}

// message is what is exchanged.
var message = bytes.Repeat([]byte("octets "), 64)

// stream is a TCP connection through the edge node.
type stream struct {
	conn net.Conn
	in   *bufio.Reader
	name string
}

// dialTCP leaves it to the edge node where its connection to the VIP comes from.
func (l *lab) dialTCP(int) (connection, error) {
	conn, err := l.clients.Dial("tcp", edgeTCP)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, in: bufio.NewReader(conn)}
	conn.SetDeadline(time.Now().Add(node.Enough))
	line, err := s.in.ReadString('\n')
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("the name of the node: %w", err)
	}
	s.name = line[:len(line)-1]
	return s, nil
}

func (s *stream) exchange(deadline time.Time) error {
	s.conn.SetDeadline(deadline)
	if _, err := s.conn.Write(message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(s.in, got); err != nil {
		return err
	}
	if !bytes.Equal(got, message) {
		return fmt.Errorf("other octets came back")
	}
	return nil
}

func (s *stream) node() string { return s.name }
func (s *stream) close()       { s.conn.Close() }

// quicConnection is one of HTTP/3, straight to the VIP.
type quicConnection struct {
	socket *quic.Transport
	conn   *quic.Conn
	http   *http3.ClientConn
	name   string
}

func (l *lab) dialQUIC(port int) (connection, error) {
	var udp *net.UDPConn
	err := l.clients.Do(func() (err error) {
		udp, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		return nil, err
	}
	q := &quicConnection{socket: &quic.Transport{Conn: udp}}
	ctx, cancel := context.WithTimeout(context.Background(), node.Enough)
	defer cancel()
	// Silence is no loss here: an exchange says what is.
	conf := &quic.Config{HandshakeIdleTimeout: node.Enough, MaxIdleTimeout: 10 * time.Minute, KeepAlivePeriod: 0}
	q.conn, err = q.socket.Dial(ctx, net.UDPAddrFromAddrPort(vipQUIC), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{http3.NextProtoH3}}, conf)
	if err != nil {
		q.close()
		return nil, err
	}
	q.http = (&http3.Transport{}).NewClientConn(q.conn)
	if q.name, err = q.request(time.Now().Add(node.Enough)); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *quicConnection) request(deadline time.Time) (name string, err error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", "https://"+vipQUIC.String()+"/", bytes.NewReader(message))
	if err != nil {
		return "", err
	}
	res, err := q.http.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != 200 || !bytes.Equal(got, message)) {
		err = fmt.Errorf("status %d and other octets came back", res.StatusCode)
	}
	return res.Header.Get("Node"), err
}

func (q *quicConnection) exchange(deadline time.Time) error {
	name, err := q.request(deadline)
	if err == nil && name != q.name {
		err = fmt.Errorf("node %q answers in place of %q", name, q.name)
	}
	return err
}

func (q *quicConnection) node() string { return q.name }

func (q *quicConnection) close() {
	if q.conn != nil {
		q.conn.CloseWithError(0, "")
	}
	q.socket.Close()
	q.socket.Conn.Close()
}

// connections makes n of them, some at once, each from a port.
func connections(t *testing.T, n int, ports []clientPort, dial func(port int) (connection, error)) []connection {
	t.Helper()
	all := make([]connection, n)
	inParallel(n, func(i int) {
		c, err := dial(int(ports[i].number))
		if err != nil {
			t.Errorf("connection %d: %v", i, err)
			return
		}
		all[i] = c
	})
	t.Cleanup(func() {
		inParallel(n, func(i int) {
			if all[i] != nil {
				all[i].close()
			}
		})
	})
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// inParallel does n things, 16 at a time.
func inParallel(n int, do func(i int)) {
	var all sync.WaitGroup
	tokens := make(chan struct{}, 16)
	for i := range n {
		tokens <- struct{}{}
		all.Go(func() {
			defer func() { <-tokens }()
			do(i)
		})
	}
	all.Wait()
}

// exchangeAll has all exchange at once and returns what each came to.
func exchangeAll(some []connection, patience time.Duration) []error {
	errs := make([]error, len(some))
	deadline := time.Now().Add(patience)
	var all sync.WaitGroup
	for i, c := range some {
		all.Go(func() { errs[i] = c.exchange(deadline) })
	}
	all.Wait()
	return errs
}
