package demo

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"
)

// httpConn is a client's HTTP/1.1 connection. net/http's client is not used: it
// sends a request again when a kept connection turns out to be closed, which is
// the very failure to be seen.
type httpConn struct {
	net.Conn
	r       *bufio.Reader
	secure  bool
	dialled time.Time
}

func (c *client) dialHTTP(a *attempt, secure bool) (h *httpConn, err error) {
	h = &httpConn{secure: secure}
	if secure {
		h.Conn, err = c.dialTLS(a, "http/1.1")
	} else {
		h.Conn, err = c.dial(a, c.web)
	}
	h.r, h.dialled = bufio.NewReader(h.Conn), a.Dialled
	return h, err
}

// send writes the head of a request; fields are whole lines without their end.
func (h *httpConn) send(method, target string, fields ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: demo.test\r\nUser-Agent: baton-demo\r\n", method, target)
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(h, b.String()); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// answer reads the head of the final response, which must have the status.
func (h *httpConn) answer(method string, status int) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(h.r, &http.Request{Method: method})
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("closed without an answer: %w", err)
		}
		if err != nil {
			return nil, fmt.Errorf("answer: %w", err)
		}
		if resp.StatusCode == status {
			return resp, nil
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
			return nil, fmt.Errorf("status %d: %.100q", resp.StatusCode, text)
		}
	}
}

// body is what a request without a body of its own asks for, short or slow.
func (a *attempt) body() (target string, want *pattern) {
	if a.long == 0 {
		return fmt.Sprintf("/small?seed=%d", a.seed), &pattern{seed: a.seed, size: smallSize}
	}
	const kb = 64
	return fmt.Sprintf("/slow?seed=%d&ms=%d&kb=%d", a.seed, a.long.Milliseconds(), kb), &pattern{seed: a.seed, size: kb << 10}
}

// checkBody reads a response to its end and compares it with what body asked for.
func (a *attempt) checkBody(resp *http.Response, want *pattern) error {
	hash := sha256.New()
	if err := expect(io.TeeReader(resp.Body, hash), want); err != nil {
		return err
	}
	if sum := hex.EncodeToString(hash.Sum(nil)); a.long > 0 && resp.Trailer.Get(shaTrailer) != sum {
		return fmt.Errorf("trailer %s is %q, not %q", shaTrailer, resp.Trailer.Get(shaTrailer), sum)
	}
	return nil
}

// get requests a short body, or a slow one, and checks it.
func (h *httpConn) get(a *attempt) (*http.Response, error) {
	target, want := a.body()
	if err := h.send("GET", target, "TE: trailers", "Connection: TE"); err != nil {
		return nil, err
	}
	resp, err := h.answer("GET", http.StatusOK)
	if err != nil {
		return nil, err
	}
	a.waited(a.Start)
	if err := a.checkBody(resp, want); err != nil {
		return nil, err
	}
	if n := h.r.Buffered(); n > 0 {
		return nil, fmt.Errorf("%d bytes after the answer", n)
	}
	return resp, nil
}

func (c *client) httpNew(a *attempt, secure bool) error {
	h, err := c.dialHTTP(a, secure)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err = h.get(a); err == nil {
		c.answered(secure)
	}
	return err
}

func (c *client) download(a *attempt) error { return c.httpNew(a, false) }

// httpKeepAlive uses the connection of the request before, as every client may
// that was not told otherwise. If the server has closed it, the request fails.
func (c *client) httpKeepAlive(a *attempt, secure bool) (err error) {
	h := c.idle
	c.idle = nil
	if h == nil {
		if h, err = c.dialHTTP(a, secure); err != nil {
			return err
		}
	} else {
		a.Dialled = h.dialled
		a.use(h)
	}
	resp, err := h.get(a)
	if err == nil {
		c.answered(secure)
	}
	if err != nil || resp.Close {
		h.Close()
		return err
	}
	c.idle = h
	return nil
}

// upload sends a body piece by piece, every second one in chunks without a
// length, and checks what the origin says it got.
func (c *client) upload(a *attempt) error {
	h, err := c.dialHTTP(a, false)
	if err != nil {
		return err
	}
	defer h.Close()

	pieces := max(1, int(a.long/slowTick))
	sent := receipt{Bytes: int64(pieces * uploadPiece)}
	body, hash := &pattern{seed: a.seed, size: pieces * uploadPiece}, sha256.New()
	framing, w, end := fmt.Sprintf("Content-Length: %d", sent.Bytes), io.Writer(h), ""
	if a.seed%2 == 0 {
		framing, w, end = "Transfer-Encoding: chunked", httputil.NewChunkedWriter(h), "0\r\n\r\n"
	}
	if err := h.send("POST", "/upload", framing); err != nil {
		return err
	}
	for range pieces {
		if _, err := io.CopyN(io.MultiWriter(w, hash), body, uploadPiece); err != nil {
			return fmt.Errorf("send body: %w", err)
		}
		time.Sleep(slowTick)
	}
	last := time.Now()
	if _, err := io.WriteString(h, end); err != nil {
		return fmt.Errorf("send body: %w", err)
	}
	resp, err := h.answer("POST", http.StatusOK)
	if err != nil {
		return err
	}
	var got receipt
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	a.waited(last)
	sent.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return got.check(sent)
}

// check compares what the origin says it got with what was sent.
func (got receipt) check(sent receipt) error {
	if got != sent {
		return fmt.Errorf("origin got %d bytes (%.8s…), not %d (%.8s…)", got.Bytes, got.SHA256, sent.Bytes, sent.SHA256)
	}
	return nil
}
