package demo

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// h3Client has one connection of HTTP/3 at a time, on a socket of its own. A
// request that the server has refused unread, in a connection that it asks to
// leave, is sent again on the next one (RFC 9114, section 5.2), as clients do.
type h3Client struct {
	http   *http3.Transport
	socket *quic.Transport

	conn       *quic.Conn // the newest
	dialled    time.Time
	generation int // that has answered on it; 0: none yet
}

func (c *client) newHTTP3() (*h3Client, error) {
	socket, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, err
	}
	h := &h3Client{socket: &quic.Transport{Conn: socket}}
	h.http = &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.roots, ServerName: serverName, ClientSessionCache: c.tickets},
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: datagramPatience, MaxIdleTimeout: patience},
		Dial: func(ctx context.Context, _ string, secure *tls.Config, config *quic.Config) (*quic.Conn, error) {
			to, err := netip.ParseAddrPort(c.http3)
			if err != nil {
				return nil, err
			}
			h.dialled, h.generation = time.Now(), 0
			h.conn, err = h.socket.DialEarly(ctx, net.UDPAddrFromAddrPort(to), secure, config)
			return h.conn, err
		},
	}
	return h, nil
}

func (h *h3Client) close() {
	if h != nil {
		h.http.Close()
		h.socket.Close()
		h.socket.Conn.Close()
	}
}

// http3New makes a request on a connection of its own, as early data where the
// session of an earlier one allows that.
func (c *client) http3New(a *attempt) error {
	h, err := c.newHTTP3()
	if err != nil {
		return err
	}
	defer h.close()
	return h.request(a, http3.MethodGet0RTT)
}

// http3Kept makes a request on the connection of the one before.
func (c *client) http3Kept(a *attempt) (err error) {
	if c.quic == nil {
		if c.quic, err = c.newHTTP3(); err != nil {
			return err
		}
	}
	return c.quic.request(a, http.MethodGet)
}

// request asks for a body, or sends one: every second time.
func (h *h3Client) request(a *attempt, get string) error {
	defer func() {
		if h.conn != nil {
			a.Flow = Flow{udpAddrPort(h.conn.LocalAddr()), udpAddrPort(h.conn.RemoteAddr())}
			a.Dialled, a.Generation = h.dialled, h.generation
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), a.limit())
	defer cancel()
	if a.seed%2 == 0 {
		return h.post(ctx, a)
	}
	target, want := a.body()
	resp, err := h.do(ctx, get, target, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	a.waited(a.Start)
	return a.checkBody(resp, want)
}

func (h *h3Client) post(ctx context.Context, a *attempt) error {
	pieces := 1 + int(a.long/slowTick)
	sum := sha256.Sum256(patternBytes(a.seed, pieces*uploadPiece))
	var body *slowBody
	resp, err := h.do(ctx, http.MethodPost, "/upload", func() (io.ReadCloser, error) {
		body = &slowBody{pattern: pattern{seed: a.seed, size: pieces * uploadPiece}, slow: a.long > 0}
		return io.NopCloser(body), nil
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var got receipt
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	a.waited(body.ended())
	return got.check(receipt{Bytes: int64(body.size), SHA256: hex.EncodeToString(sum[:])})
}

// do sends a request, wants status 200, and the answer from the generation that
// has the connection.
func (h *h3Client) do(ctx context.Context, method, target string, body func() (io.ReadCloser, error)) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+serverName+target, nil)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Body, _ = body()
		req.GetBody = body
	}
	req.Header.Set("User-Agent", "baton-demo")
	req.Header.Set("Baton-Probe", "1")
	resp, err := h.http.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	err = wantStatus(resp, http.StatusOK)
	if err == nil {
		err = h.answeredBy(resp.Header.Get("Baton-Generation"))
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func (h *h3Client) answeredBy(text string) error {
	generation, err := strconv.Atoi(text)
	switch {
	case err != nil:
		return errors.New("no generation says that it has answered")
	case h.generation != 0 && h.generation != generation:
		return fmt.Errorf("a connection of generation %d was answered by %d", h.generation, generation)
	}
	h.generation = generation
	return nil
}

func udpAddrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
