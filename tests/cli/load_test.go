package cli

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// load is two clients that make one request after the other: one keeps its
// connection until it is told to close it, the other makes a new one each time.
// Neither retries: a request that gets no whole answer has failed.
type load struct {
	url     *url.URL
	ending  chan struct{}
	clients sync.WaitGroup

	mu          sync.Mutex
	failure     error // the first one
	kept, fresh int   // requests answered, by client
	connections int   // of the client that keeps them
}

func startLoad(ts *testscript.TestScript, args []string) {
	n := nodeOf(ts)
	if len(args) == 1 && args[0] == "stop" {
		n.load.stop()
		ts.Check(n.load.failed())
		n.load = nil
		return
	}
	if len(args) != 1 || n.load != nil {
		ts.Fatalf("usage: load URL, once; load stop")
	}
	u, err := url.Parse(args[0])
	ts.Check(err)
	n.load = &load{url: u, ending: make(chan struct{})}
	n.load.clients.Go(n.load.keepAlive)
	n.load.clients.Go(n.load.anew)
	answered(ts, nil)
}

func answered(ts *testscript.TestScript, _ []string) { nodeOf(ts).load.goOn(ts) }

func undisturbed(ts *testscript.TestScript, _ []string) {
	l := nodeOf(ts).load
	l.goOn(ts)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.connections != 1 {
		ts.Fatalf("the connection was closed %d times: its generation was told to stop", l.connections-1)
	}
}

// goOn waits until each client has made ten more requests.
func (l *load) goOn(ts *testscript.TestScript) {
	kept, fresh := l.counts()
	poll(ts, "the clients have stopped", func() bool {
		ts.Check(l.failed())
		k, f := l.counts()
		return k >= kept+10 && f >= fresh+10
	})
}

func (l *load) counts() (kept, fresh int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept, l.fresh
}

func (l *load) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failure
}

func (l *load) stop() {
	close(l.ending)
	l.clients.Wait()
}

// keepAlive uses each connection for as long as the server lets it.
func (l *load) keepAlive() {
	for l.going() {
		err := l.connection(func(c net.Conn) error {
			l.mu.Lock()
			l.connections++
			l.mu.Unlock()
			in := bufio.NewReader(c)
			for l.going() {
				last, err := l.request(c, in, false)
				if err != nil || last {
					return err
				}
				l.mu.Lock()
				l.kept++
				l.mu.Unlock()
			}
			return nil
		})
		if l.fail("keep-alive", err) {
			return
		}
	}
}

// anew makes a connection for each request.
func (l *load) anew() {
	for l.going() {
		err := l.connection(func(c net.Conn) error {
			_, err := l.request(c, bufio.NewReader(c), true)
			return err
		})
		if l.fail("new connection", err) {
			return
		}
		l.mu.Lock()
		l.fresh++
		l.mu.Unlock()
	}
}

// going paces the clients, and says when to end.
func (l *load) going() bool {
	select {
	case <-l.ending:
		return false
	case <-time.After(5 * time.Millisecond):
		return true
	}
}

func (l *load) fail(client string, err error) bool {
	if err == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil {
		l.failure = fmt.Errorf("a request failed (%s): %w", client, err)
	}
	return true
}

func (l *load) connection(use func(net.Conn) error) error {
	c, err := net.DialTimeout("tcp", l.url.Host, enough)
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}

// request makes one request, and tells whether it was the connection's last.
func (l *load) request(c net.Conn, in *bufio.Reader, last bool) (bool, error) {
	c.SetDeadline(time.Now().Add(enough))
	req := &http.Request{Method: http.MethodGet, URL: l.url, Close: last}
	if err := req.Write(c); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || string(body) != "hello\n") {
		err = fmt.Errorf("%s: %q", resp.Status, body)
	}
	return resp.Close, err
}
