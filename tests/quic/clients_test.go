package quic

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// patience is how long a client waits: on a busy machine a slow answer is no loss.
const patience = 30 * time.Second

// load is clients that go on until they are told to stop, and what they saw.
type load struct {
	t        *testing.T
	url      string // of the listener's HTTP/3
	udp      string
	secure   *tls.Config
	patience time.Duration // for an answer
	stop     chan struct{}
	once     sync.Once
	running  sync.WaitGroup

	mu       sync.Mutex
	done     map[string]int
	answered map[string]int // by generation
	failed   []string
}

func newLoad(t *testing.T, address, udp string, certificate []byte) *load {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(certificate) {
		t.Fatal("no certificate")
	}
	l := &load{
		t: t, patience: patience, url: "https://" + address, udp: udp, stop: make(chan struct{}), done: map[string]int{}, answered: map[string]int{},
		secure: &tls.Config{RootCAs: roots, ServerName: "demo.test"},
	}
	t.Cleanup(func() { l.finish() })
	return l
}

// each runs a client that does one operation after the other.
func (l *load) each(kind string, client func() (op func() error, end func())) {
	l.running.Go(func() {
		op, end := client()
		defer end()
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			err := op()
			l.mu.Lock()
			l.done[kind]++
			if err != nil {
				l.failed = append(l.failed, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), kind, err))
			}
			l.mu.Unlock()
			time.Sleep(5 * time.Millisecond) // two cores are shared with what is tested
		}
	})
}

// count is how often a kind of client has done its operation.
func (l *load) count(kind string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done[kind]
}

func (l *load) finish() (done map[string]int, failed []string) {
	l.once.Do(func() { close(l.stop) })
	l.running.Wait()
	return l.done, l.failed
}

// client is a client of HTTP/3 with one connection at a time.
type client struct {
	http   *http3.Transport
	load   *load
	url    string
	socket *quic.Transport
	last   atomic.Pointer[quic.Conn]
	owners map[*quic.Conn]string // the generation that first answered on each
}

func (l *load) client(secure *tls.Config) *client {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		l.t.Error(err)
	}
	c := &client{load: l, url: l.url, socket: &quic.Transport{Conn: conn}, owners: map[*quic.Conn]string{}}
	c.http = &http3.Transport{
		TLSClientConfig: secure,
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: patience, MaxIdleTimeout: patience},
		Dial: func(ctx context.Context, address string, secure *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			to, err := net.ResolveUDPAddr("udp", address)
			if err != nil {
				return nil, err
			}
			made, err := c.socket.DialEarly(ctx, to, secure, conf)
			if err == nil {
				c.last.Store(made)
			}
			return made, err
		},
	}
	return c
}

func (c *client) end() {
	c.http.Close()
	c.socket.Close()
	c.socket.Conn.Close()
}

// do sends a request and reads the response. A connection that was answered by one
// generation must never be answered by another.
func (c *client) do(method, path string, body io.Reader) ([]byte, error) {
	return c.doFor(c.load.patience, method, path, body)
}

// doFor is do with another patience.
func (c *client) doFor(patience time.Duration, method, path string, body io.Reader) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Baton-Probe", "1")
	res, err := c.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d: %s", res.StatusCode, got)
	}
	generation := res.Header.Get("Baton-Generation")
	if generation == "" {
		return nil, errors.New("no generation says that it has answered")
	}
	c.load.mu.Lock()
	c.load.answered[generation]++
	c.load.mu.Unlock()
	conn := c.last.Load()
	if first, ok := c.owners[conn]; !ok {
		c.owners[conn] = generation
	} else if first != generation {
		return nil, fmt.Errorf("a connection of generation %s was answered by %s", first, generation)
	}
	return got, nil
}

// one makes a connection for one request.
func (l *load) one() error {
	c := l.client(l.secure)
	defer c.end()
	_, err := c.do(http.MethodGet, "/small", nil)
	return err
}

// fresh makes a connection for each request.
func (l *load) fresh() {
	l.each("new connections", func() (func() error, func()) { return l.one, func() {} })
}

// kept sends its requests on a connection that it keeps for as long as it may.
func (l *load) kept() {
	l.each("kept connections", func() (func() error, func()) {
		c := l.client(l.secure)
		return func() error {
			_, err := c.do(http.MethodGet, "/small", nil)
			return err
		}, c.end
	})
}

// resumed resumes one session on a new connection each time, and begins with what
// needs no answer of the server's before it.
func (l *load) resumed() {
	l.each("resumed connections", func() (func() error, func()) {
		secure := l.secure.Clone()
		secure.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		return func() error {
			c := l.client(secure)
			defer c.end()
			if _, err := c.do(http3.MethodGet0RTT, "/small", nil); err != nil {
				return err
			}
			// The next one has the ticket that comes behind the handshake.
			_, err := c.do(http.MethodGet, "/small", nil)
			return err
		}, func() {}
	})
}

// slow downloads for ms milliseconds.
func (l *load) slow(ms int) {
	l.each("slow downloads", func() (func() error, func()) {
		c := l.client(l.secure)
		return func() error {
			_, err := c.do(http.MethodGet, fmt.Sprintf("/slow?ms=%d&kb=64&seed=1", ms), nil)
			return err
		}, c.end
	})
}

// uploads sends a body over ms milliseconds and wants its sum back.
func (l *load) uploads(ms int) {
	l.each("slow uploads", func() (func() error, func()) {
		c := l.client(l.secure)
		return func() error {
			const parts = 20
			part, sum := bytes.Repeat([]byte("x"), 4<<10), sha256.New()
			r, w := io.Pipe()
			go func() {
				for range parts {
					sum.Write(part)
					w.Write(part)
					time.Sleep(time.Duration(ms) * time.Millisecond / parts)
				}
				w.Close()
			}()
			got, err := c.do(http.MethodPost, "/upload", r)
			r.Close()
			if err != nil {
				return err
			}
			var answer struct{ SHA256 string }
			if err := json.Unmarshal(got, &answer); err != nil || answer.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
				return fmt.Errorf("the upload arrived as %s", got)
			}
			return nil
		}, c.end
	})
}

// moving keeps a connection through a relay that changes the client's port every
// few requests, as a NAT that forgets does.
func (l *load) moving() {
	l.each("moving clients", func() (func() error, func()) {
		relay := newRelay(l.t, l.url[len("https://"):])
		c := l.client(l.secure)
		c.url = "https://" + relay.address()
		n := 0
		return func() error {
			if n++; n%5 == 0 {
				relay.rebind()
			}
			_, err := c.do(http.MethodGet, "/small", nil)
			return err
		}, func() { c.end(); relay.close() }
	})
}

// datagrams exchanges some datagrams on a flow, and then begins another.
func (l *load) datagrams() {
	l.each("UDP flows", func() (func() error, func()) {
		return func() error {
			c, err := net.Dial("udp", l.udp)
			if err != nil {
				return err
			}
			defer c.Close()
			for i := range 10 {
				word := fmt.Appendf(nil, "%s %d", c.LocalAddr(), i)
				if _, err := c.Write(word); err != nil {
					return err
				}
				got := make([]byte, 2048)
				c.SetReadDeadline(time.Now().Add(patience))
				n, err := c.Read(got)
				if err != nil {
					return fmt.Errorf("datagram %d: %w", i, err)
				}
				if !bytes.Equal(got[:n], word) {
					return fmt.Errorf("sent %q, got %q", word, got[:n])
				}
				time.Sleep(10 * time.Millisecond)
			}
			return nil
		}, func() {}
	})
}

// all is every kind of client.
func (l *load) all(slowMS int) {
	l.fresh()
	l.kept()
	l.kept()
	l.resumed()
	l.slow(slowMS)
	l.uploads(slowMS)
	l.moving()
	l.datagrams()
	l.datagrams()
}
