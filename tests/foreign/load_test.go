package foreign

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// load counts what strict clients saw. They send nothing twice: a browser would,
// and hide what this is about.
type load struct {
	address string
	// most is how many requests the clients that keep connections make on one.
	most int

	answered, reused atomic.Int64 // requests; those on a connection that had served before
	newFailed        atomic.Int64 // the first request of a connection, or the connection itself
	cut              atomic.Int64 // an answer that began and did not end
	// raced counts requests on a connection that the server closed, as idle, while
	// they were on their way. HTTP/1.1 leaves that to the client (RFC 9112,
	// section 9.3.1); only a server that announces the end beforehand, by
	// Connection: close, spares it.
	raced    atomic.Int64
	closed   atomic.Int64 // idle connections closed between two requests: no failure
	announce atomic.Int64 // connections whose end the server announced

	mu      sync.Mutex
	servers map[string]bool // who answered
	errors  []string
}

func (l *load) String() string {
	return fmt.Sprintf("%d requests answered by %d servers, %d of them on kept connections; %d new connections failed, %d answers cut, %d kept connections closed under a request; %d closed while idle, %d by announcement",
		l.answered.Load(), len(l.servers), l.reused.Load(), l.newFailed.Load(), l.cut.Load(), l.raced.Load(), l.closed.Load(), l.announce.Load())
}

// keepAlive asks again and again on one connection, as long as it lasts or up
// to the client's own bound.
func (l *load) keepAlive(ctx context.Context) {
	for ctx.Err() == nil {
		l.connection(ctx, l.most)
	}
}

// connectAnew asks once on each connection.
func (l *load) connectAnew(ctx context.Context) {
	for ctx.Err() == nil {
		l.connection(ctx, 1)
		time.Sleep(2 * time.Millisecond)
	}
}

// patience is less than any of the servers has with an idle connection.
const patience = time.Second

// connection opens one and asks up to so many times.
func (l *load) connection(ctx context.Context, requests int) {
	conn, err := net.DialTimeout("tcp", l.address, 10*time.Second)
	if err != nil {
		l.failed(&l.newFailed, "connect", err)
		return
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	answered := time.Now()
	for i := range requests {
		if ctx.Err() != nil {
			return
		}
		if i > 0 {
			time.Sleep(2 * time.Millisecond)
			if ended(conn, r) {
				l.closed.Add(1)
				return
			}
		}
		idle := time.Since(answered)
		began, last, err := l.ask(conn, r)
		answered = time.Now()
		switch {
		case err == nil:
		case began:
			l.failed(&l.cut, "answer", err)
			return
		case i == 0:
			l.failed(&l.newFailed, "first request", err)
			return
		case idle > patience:
			return // the server's own timeout, on a machine that left us no time
		default:
			l.raced.Add(1)
			return
		}
		l.answered.Add(1)
		if i > 0 {
			l.reused.Add(1)
		}
		if last {
			l.announce.Add(1)
			return
		}
	}
}

// ask sends one request. It reports whether an answer began, and whether the
// server announced it as the last one.
func (l *load) ask(conn net.Conn, r *bufio.Reader) (began, last bool, err error) {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: foreign\r\n\r\n"); err != nil {
		return false, false, err
	}
	if _, err := r.Peek(1); err != nil {
		return false, false, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return true, false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return true, false, err
	}
	if resp.StatusCode != http.StatusOK {
		return true, false, errors.New(resp.Status)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.servers == nil {
		l.servers = map[string]bool{}
	}
	l.servers[string(body)] = true
	return true, resp.Close, nil
}

// ended reports whether the server has closed the connection, without waiting.
func ended(conn net.Conn, r *bufio.Reader) bool {
	conn.SetReadDeadline(time.Now().Add(100 * time.Microsecond))
	_, err := r.Peek(1)
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (l *load) failed(count *atomic.Int64, what string, err error) {
	count.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errors) < 20 {
		l.errors = append(l.errors, fmt.Sprintf("%s: %v", what, err))
	}
}
