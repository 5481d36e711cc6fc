package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// Strict is what clients that never retry came to while a peer was replaced.
type Strict struct {
	Replacements int `json:"replacements"`
	OK           int `json:"ok"`
	// Failed counts by kind of client; those of careful clients are in Careful.
	Failed map[demo.Kind]int `json:"failed"`
	// Streams is the part of Failed that was under way for a second or more.
	Streams int     `json:"streams_failed"`
	Careful Careful `json:"careful"`
	// Before is how many failed before the first replacement; it has nothing to
	// do with replacing.
	Before int `json:"failed_before"`
	// Peak is the memory while most of it was in use: several generations may
	// have had streams at once.
	Peak Memory `json:"peak"`
	// Examples has one error of each kind that failed.
	Examples map[demo.Kind]string `json:"examples,omitempty"`
}

// Total is all that failed, whatever the kind. A connection that a careful
// client found closed is no failure.
func (s Strict) Total() int {
	n := s.Careful.Failed
	for _, f := range s.Failed {
		n += f
	}
	return n
}

// Careful is what keep-alive clients came to that look, right before they send,
// whether the server has closed.
type Careful struct {
	OK int `json:"ok"`
	// Closed connections were found closed without notice while they were idle.
	Closed int `json:"found_closed"`
	// Failed requests got no whole answer though the connection looked open.
	Failed int `json:"failed"`
}

const (
	// stream is the shortest time of a stream; the longest is half as long again.
	stream         = time.Second
	carefulClients = 4
	carefulPause   = 4 * time.Millisecond // the longest between two requests
)

// strictKinds are the kinds of clients that every peer can serve as it is
// configured here.
var strictKinds = []demo.Kind{demo.HTTPNew, demo.HTTPKeepAlive, demo.WebSocket, demo.Upload, demo.Download, demo.TCP, demo.TCPNew}

// strict replaces a peer n times, once every second or as fast as it can, under
// clients of these kinds.
func strict(ctx context.Context, r *running, n int) (Strict, error) {
	load := &demo.Load{HTTP: r.site.Web, TCP: r.site.Raw, Stream: stream, Kinds: strictKinds}
	var ok, closed, failed atomic.Int64
	loadCtx, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	finish := func() { stop(); clients.Wait() }
	defer finish()
	clients.Go(func() { load.Run(loadCtx) })
	var peak usage
	clients.Go(func() { peak = r.peak(loadCtx) })
	for range carefulClients {
		clients.Go(func() {
			c := careful{address: r.site.Web, ok: &ok, closed: &closed, failed: &failed}
			c.run(loadCtx)
		})
	}
	// Long enough for streams to be in the middle of things.
	if err := sleep(ctx, 1500*time.Millisecond); err != nil {
		return Strict{}, err
	}
	began := time.Now()
	for range n {
		next := time.After(time.Second)
		if _, err := r.replace(ctx); err != nil {
			return Strict{}, err
		}
		select {
		case <-ctx.Done():
			return Strict{}, ctx.Err()
		case <-next:
		}
	}
	finish()

	s := tally(load.Ops(), began, r.noTrailers)
	s.Replacements = n
	s.Peak = memoryOf(peak)
	s.Careful = Careful{int(ok.Load()), int(closed.Load()), int(failed.Load())}
	return s, nil
}

// peak looks at the peer's memory until ctx is done.
func (r *running) peak(ctx context.Context) (most usage) {
	for sleep(ctx, 100*time.Millisecond) == nil {
		if u, err := r.usage(); err == nil && u.pss > most.pss {
			most = u
		}
	}
	return most
}

// tally counts operations. With noTrailers an answer is whole without its
// trailer: the client has compared the body before it looks for one.
func tally(ops []demo.Op, began time.Time, noTrailers bool) Strict {
	s := Strict{Failed: make(map[demo.Kind]int), Examples: make(map[demo.Kind]string)}
	for _, op := range ops {
		switch {
		case op.Err == nil, noTrailers && strings.HasPrefix(op.Err.Error(), "trailer "):
			s.OK++
		case op.End.Before(began):
			s.Before++
		default:
			s.Failed[op.Kind]++
			s.Examples[op.Kind] = op.Err.Error()
			switch op.Kind {
			case demo.WebSocket, demo.Upload, demo.Download, demo.TCP:
				s.Streams++
			}
		}
	}
	return s
}

// careful is a keep-alive client that does what a good client can to notice
// that its connection is no longer there.
type careful struct {
	address            string
	ok, closed, failed *atomic.Int64

	conn net.Conn
	r    *bufio.Reader
}

func (c *careful) run(ctx context.Context) {
	defer c.drop()
	for ctx.Err() == nil {
		if c.conn != nil && isClosed(c.conn) {
			c.closed.Add(1)
			c.drop()
		}
		pause := rand.N(carefulPause)
		if err := c.get(); err != nil {
			c.failed.Add(1)
			c.drop()
			pause = 100 * time.Millisecond
		} else {
			c.ok.Add(1)
		}
		sleep(ctx, pause)
	}
}

func (c *careful) drop() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *careful) get() (err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.address, 5*time.Second); err != nil {
			c.conn = nil // not a nil pointer in an interface
			return err
		}
		c.r = bufio.NewReader(c.conn)
	}
	c.conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c.conn, "GET /small?seed=1 HTTP/1.1\r\nHost: bench.test\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != 512) {
		err = fmt.Errorf("status %d, %d bytes", resp.StatusCode, n)
	}
	if resp.Close {
		c.drop()
	}
	return err
}

// isClosed reports whether the other end has closed, as far as this host knows.
func isClosed(c net.Conn) bool {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		closed = err == nil && n == 0 || err != nil && !errors.Is(err, unix.EAGAIN)
		return true
	})
	return closed || err != nil
}
