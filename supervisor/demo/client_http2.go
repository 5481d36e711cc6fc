package demo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// h2Conn is a connection that speaks HTTP/2, by net/http's client. It is driven
// below net/http's pool, which would send a refused request again.
type h2Conn struct {
	*http.ClientConn
	conn    *goAwayConn
	scheme  string
	flow    Flow
	dialled time.Time
}

var errNoGoAway = errors.New("the connection was closed without GOAWAY")

// h2Shared is a connection that clients use at the same time, a stream each,
// until they are told by GOAWAY to begin no more. The next one to need it
// connects anew.
type h2Shared struct {
	mu   sync.Mutex
	conn *h2Conn // nil before the first
}

// h2Pair is a shared connection with TLS and one without.
type h2Pair struct{ tls, clear h2Shared }

func (p *h2Pair) of(secure bool) *h2Shared {
	if secure {
		return &p.tls
	}
	return &p.clear
}

func (p *h2Pair) close() {
	p.tls.close()
	p.clear.close()
}

// get returns the connection and makes it the attempt's.
func (s *h2Shared) get(c *client, a *attempt, secure bool) (*h2Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.conn
	if h != nil && h.Available() == 0 {
		s.conn = nil // the streams on it go on; it closes after the last
		if !h.conn.told.Load() {
			a.Flow, a.Dialled = h.flow, h.dialled
			return nil, errNoGoAway
		}
	}
	if s.conn == nil {
		var err error
		if s.conn, err = c.dialHTTP2(a, secure); err != nil {
			return nil, err
		}
	}
	a.Flow, a.Dialled = s.conn.flow, s.conn.dialled
	return s.conn, nil
}

func (s *h2Shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
}

func (c *client) dialHTTP2(a *attempt, secure bool) (_ *h2Conn, err error) {
	h := &h2Conn{scheme: "http", conn: new(goAwayConn)}
	if secure {
		h.scheme = "https"
		h.conn.Conn, err = c.dialTLS(a, "h2")
	} else {
		h.conn.Conn, err = c.dial(a, c.web)
	}
	if err != nil {
		return nil, err
	}
	h.conn.SetDeadline(time.Time{}) // each request has its own
	h.flow, h.dialled = a.Flow, a.Dialled
	// To the transport, TLS is below the connection it gets.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return h.conn, nil },
	}
	if h.ClientConn, err = transport.NewClientConn(context.Background(), "http", serverName+":1"); err != nil {
		h.conn.Close()
		return nil, err
	}
	return h, nil
}

// roundTrip sends a request over a connection that get yields, once. A
// connection may be told to go between get and the first octet of the request;
// then nothing is sent on it, and the client goes to another one as all do.
func roundTrip(ctx context.Context, get func() (*h2Conn, error), request func(h *h2Conn) *http.Request) (*http.Response, error) {
	for {
		h, err := get()
		if err != nil {
			return nil, err
		}
		var sent atomic.Bool
		ctx := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(string, []string) { sent.Store(true) }})
		resp, err := h.RoundTrip(request(h).WithContext(ctx))
		if err == nil {
			return resp, nil
		}
		if sent.Load() || !h.conn.told.Load() || ctx.Err() != nil {
			return nil, cutByGoAway(err)
		}
	}
}

// cutByGoAway tells streams that ended with their connection, after it had been
// announced, from those that were refused.
func cutByGoAway(err error) error {
	if err != nil && strings.Contains(err.Error(), "server sent GOAWAY and closed the connection") {
		return fmt.Errorf("%w (%w)", err, ErrCut)
	}
	return err
}

// onHTTP2 makes a request on the client's shared connection, or on a new one.
func (c *client) onHTTP2(a *attempt, secure, anew bool) error {
	get := func() (*h2Conn, error) { return c.shared.of(secure).get(c, a, secure) }
	if anew {
		var own h2Shared
		defer own.close()
		get = func() (*h2Conn, error) { return own.get(c, a, secure) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), a.limit())
	defer cancel()
	do := h2Get
	if a.seed%2 == 0 {
		do = h2Post
	}
	err := do(ctx, a, get)
	if err == nil {
		c.answered(secure)
	}
	return cutByGoAway(err)
}

func (h *h2Conn) request(method, target string, body io.Reader) *http.Request {
	req, err := http.NewRequest(method, h.scheme+"://"+serverName+target, body)
	if err != nil {
		panic(err) // of constants
	}
	req.Header.Set("User-Agent", "baton-demo")
	return req
}

// h2Get requests a body, short or slow, and checks it.
func h2Get(ctx context.Context, a *attempt, get func() (*h2Conn, error)) error {
	target, want := a.body()
	resp, err := roundTrip(ctx, get, func(h *h2Conn) *http.Request { return h.request("GET", target, nil) })
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := wantStatus(resp, http.StatusOK); err != nil {
		return err
	}
	a.waited(a.Start)
	return a.checkBody(resp, want)
}

// h2Post sends a body, at once or slowly, and checks what the origin says it got.
func h2Post(ctx context.Context, a *attempt, get func() (*h2Conn, error)) error {
	pieces := 1 + int(a.long/slowTick)
	sum := sha256.Sum256(patternBytes(a.seed, pieces*uploadPiece))
	var body *slowBody
	resp, err := roundTrip(ctx, get, func(h *h2Conn) *http.Request {
		body = &slowBody{pattern: pattern{seed: a.seed, size: pieces * uploadPiece}, slow: a.long > 0}
		return h.request("POST", "/upload", body)
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := wantStatus(resp, http.StatusOK); err != nil {
		return err
	}
	var got receipt
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	a.waited(body.ended())
	return got.check(receipt{Bytes: int64(body.size), SHA256: hex.EncodeToString(sum[:])})
}

// slowBody yields a pattern piece by piece, with a pause after each.
type slowBody struct {
	pattern
	slow bool
	end  atomic.Int64 // when the last piece was handed out, in Unix nanoseconds
}

const uploadPiece = 4 << 10

func (b *slowBody) Read(p []byte) (int, error) {
	if b.slow && b.off > 0 && b.off%uploadPiece == 0 {
		time.Sleep(slowTick)
	}
	// One piece at most, whatever room there is.
	room := uploadPiece - b.off%uploadPiece
	n, err := b.pattern.Read(p[:min(len(p), room)])
	b.end.Store(time.Now().UnixNano())
	return n, err
}

func (b *slowBody) ended() time.Time { return time.Unix(0, b.end.Load()) }

func wantStatus(resp *http.Response, status int) error {
	if resp.StatusCode == status {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	return fmt.Errorf("status %d: %.100q", resp.StatusCode, text)
}
