package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

// server serves each connection with f and returns its address.
func server(t *testing.T, f func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c, bufio.NewReader(c))
			}()
		}
	}()
	return ln.Addr().String()
}

// closed is an address where nobody listens.
func closed(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// echo answers each request with its body.
func echo(c net.Conn, r *bufio.Reader) {
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		res := http.Response{StatusCode: 200, ProtoMajor: 1, ProtoMinor: 1,
			Body: io.NopCloser(strings.NewReader(string(body))), ContentLength: int64(len(body))}
		res.Write(c)
	}
}

func post(u *Upstream, body io.Reader) (string, error) {
	req, _ := http.NewRequest("POST", "http://upstream/", body)
	req.GetBody = nil // as a server's requests
	res, endpoint, err := u.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer endpoint.Release()
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return string(text), err
}

func inFlight(u *Upstream) (n int64) {
	for _, e := range u.endpoints {
		n += e.inFlight.Load()
	}
	return n
}

func TestEndpointThatCannotBeReachedIsPassedOver(t *testing.T) {
	u := New(config.Upstream{Endpoints: []string{closed(t), closed(t), server(t, echo)}, MaxIdle: 8})
	defer u.Close()
	for range 20 {
		if got, err := post(u, strings.NewReader("body")); got != "body" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		conn, endpoint, err := u.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		endpoint.Release()
	}
	if n := inFlight(u); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

func TestNobodyReached(t *testing.T) {
	u := New(config.Upstream{Endpoints: []string{closed(t), closed(t)}})
	var dialErr *DialError
	if _, err := post(u, nil); !errors.As(err, &dialErr) {
		t.Errorf("%v", err)
	}
	if n := inFlight(u); n != 0 {
		t.Errorf("%d in flight", n)
	}
}

func TestConnectTimeoutPassesOver(t *testing.T) {
	full := fullQueue(t)
	u := New(config.Upstream{Endpoints: []string{full, server(t, echo)}, ConnectTimeout: 50 * time.Millisecond, MaxIdle: 8})
	defer u.Close()
	for range 10 {
		if got, err := post(u, strings.NewReader("body")); got != "body" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// fullQueue is an address whose SYNs get no answer.
func fullQueue(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	raw, _ := ln.(*net.TCPListener).SyscallConn()
	raw.Control(func(fd uintptr) { unix.Listen(int(fd), 0) })
	for {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 100*time.Millisecond)
		if err != nil {
			return ln.Addr().String()
		}
		t.Cleanup(func() { c.Close() })
	}
}

// A server may close an unused connection at the very moment a request is sent on it.
func TestPooledConnectionThatDiedIsReplaced(t *testing.T) {
	var conns atomic.Int64
	var reused atomic.Bool
	u := New(config.Upstream{MaxIdle: 8, Endpoints: []string{server(t, func(c net.Conn, r *bufio.Reader) {
		first := conns.Add(1) == 1
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		if first {
			_, err := http.ReadRequest(r) // taken, and dropped with the connection
			reused.Store(err == nil)
		}
	})}})
	defer u.Close()
	for i := range 2 {
		req, _ := http.NewRequest("GET", "http://upstream/", nil)
		res, endpoint, err := u.RoundTrip(req)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "ok" || err != nil {
			t.Errorf("%q, %v", body, err)
		}
		res.Body.Close()
		endpoint.Release()
	}
	if conns.Load() != 2 || !reused.Load() {
		t.Errorf("%d connections, reused %t; the first must be reused and then replaced", conns.Load(), reused.Load())
	}
}

func TestMaxConnectionsOfStreams(t *testing.T) {
	u := New(config.Upstream{MaxConnections: 1, Endpoints: []string{
		server(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) }),
		server(t, func(c net.Conn, r *bufio.Reader) { io.Copy(io.Discard, r) }),
	}})
	used := make(map[*Endpoint]bool)
	for range 2 {
		c, endpoint, err := u.Dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		used[endpoint] = true
	}
	if len(used) != 2 {
		t.Error("both streams are on one endpoint")
	}
	if _, _, err := u.Dial(context.Background()); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
}

func TestTheLessBusyOfTwoIsChosen(t *testing.T) {
	u := New(config.Upstream{Endpoints: []string{"a", "b"}})
	u.endpoints[0].inFlight.Store(3)
	for range 50 {
		if got := u.choose(); got.Address != "b" {
			t.Fatalf("chose %s", got.Address)
		}
	}
	u = New(config.Upstream{Endpoints: []string{"a", "b", "c"}})
	chosen := make(map[string]int)
	for range 3000 {
		chosen[u.choose().Address]++
	}
	for _, address := range []string{"a", "b", "c"} {
		if chosen[address] < 800 {
			t.Errorf("chosen: %v", chosen)
		}
	}
}

func TestReplayBody(t *testing.T) {
	text := strings.Repeat("0123456789", 1000)
	b := &replayBody{src: io.NopCloser(strings.NewReader(text))}
	first := b.reader()
	io.ReadFull(first, make([]byte, 5000))
	first.Close()
	second, err := b.again()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("an attempt that was given up may still read")
	}
	if got, err := io.ReadAll(second); string(got) != text || err != nil {
		t.Errorf("%d octets, %v", len(got), err)
	}

	b = &replayBody{src: io.NopCloser(strings.NewReader(strings.Repeat(text, 2)))}
	if got, _ := io.ReadAll(b.reader()); len(got) != 20000 {
		t.Errorf("%d octets", len(got))
	}
	if _, err := b.again(); err == nil {
		t.Error("a body beyond the limit was said to be whole")
	}
}
