package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// seen answers with the head the upstream got.
func seen(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "Host: %s\n", r.Host)
	r.Header.Write(w)
}

func TestRequestFields(t *testing.T) {
	trust := func(c *config.Config) {
		c.Listeners[0].TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	const forged = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.example\r\n"
	tests := []struct {
		name   string
		change func(*config.Config)
		fields string
		want   []string
		absent []string
	}{
		{
			name: "the host and trace context pass unchanged",
			fields: "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n" +
				"Baton-Probe: 1\r\n",
			want: []string{"Host: a.example", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		},
		{
			name:   "forwarding fields of a stranger are replaced",
			fields: forged + "Forwarded: for=192.0.2.1\r\n",
			want:   []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a.example"},
			absent: []string{"Forwarded: for", "192.0.2.1"},
		},
		{
			name:   "those that are spelled almost so are dropped",
			fields: "X_Forwarded_For: 192.0.2.1\r\nx-forwarded_proto: https\r\ntransfer_encoding: chunked\r\nX_Mine: 1\r\n",
			want:   []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X_mine: 1"},
			absent: []string{"192.0.2.1", "https", "ransfer"},
		},
		{
			name:   "those of a trusted proxy are kept and appended to",
			change: trust,
			fields: forged,
			want:   []string{"X-Forwarded-For: 192.0.2.1, 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: b.example"},
		},
		{
			name:   "connection-level fields end here",
			fields: "Connection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nTE: gzip\r\nProxy-Authorization: x\r\n",
			absent: []string{"X-Mine", "Keep-Alive", "Te:", "Proxy-Authorization"},
		},
		{
			name:   "an upgrade to h2c is not forwarded",
			fields: "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
			absent: []string{"Upgrade", "Http2-Settings", "Connection"},
		},
		{
			name:   "HTTP2-Settings alone is not either",
			fields: "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
			absent: []string{"Http2-Settings"},
		},
	}
	address := origin(t, seen)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.change == nil {
				test.change = func(*config.Config) {}
			}
			c := dial(t, start(t, address, "", test.change).web)
			c.send("GET / HTTP/1.1\r\nHost: a.example\r\n" + test.fields + "\r\n")
			_, body := c.response()
			for _, want := range test.want {
				if !strings.Contains(body, want+"\r\n") && !strings.Contains(body, want+"\n") {
					t.Errorf("no %q in\n%s", want, body)
				}
			}
			for _, absent := range test.absent {
				if strings.Contains(body, absent) {
					t.Errorf("%q is in\n%s", absent, body)
				}
			}
		})
	}
}

func TestOurFailures(t *testing.T) {
	nobody := func(t *testing.T) string {
		ln := listen(t)
		ln.Close()
		return ln.Addr().String()
	}
	never := func(t *testing.T) string {
		return serveTCP(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	}
	alive := func(t *testing.T) string { return origin(t, hello) }
	reads := func(t *testing.T) string {
		return origin(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	}
	none := 0
	tests := []struct {
		name    string
		origin  func(*testing.T) string
		change  func(*config.Config)
		request string
		status  int
		cause   string
	}{
		{"no route", alive, func(c *config.Config) { c.Routes[0].Match.Hosts = []string{"b.example"} }, "", 404, "no-route"},
		{"no weight", alive, func(c *config.Config) { c.Routes[0].Upstreams[0].Weight = &none }, "", 503, "no-upstream"},
		{"nobody listens", nobody, nil, "", 502, "upstream-connect"},
		{"no answer in time", never, func(c *config.Config) { c.Routes[0].Timeout = 50 * time.Millisecond }, "", 504, "upstream-timeout"},
		{"no HTTP", func(t *testing.T) string {
			return serveTCP(t, func(c *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, "what?\r\n\r\n")
			})
		}, nil, "", 502, "upstream-response"},
		{"switches unasked", func(t *testing.T) string {
			return serveTCP(t, func(c *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
				io.Copy(io.Discard, c)
			})
		}, nil, "", 502, "upstream-response"},
		{"CONNECT", alive, nil, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", 501, "method"},
		{"body announced too large", reads, bodyLimit, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413, "body-too-large"},
		{"body grown too large", reads, bodyLimit, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nxxxxxxxx\r\n8\r\nxxxxxxxx\r\n0\r\n\r\n", 413, "body-too-large"},
		{"body garbled", reads, nil, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "request-body"},
		{"head too large", alive, nil, "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 17<<10) + "\r\n\r\n", 431, ""},
		{"both lengths", alive, nil, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.change == nil {
				test.change = func(*config.Config) {}
			}
			c := dial(t, start(t, test.origin(t), "", test.change).web)
			if test.request == "" {
				test.request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
			}
			c.send(test.request)
			res, body := c.response()
			if res.StatusCode != test.status || res.Header.Get("Baton-Error") != test.cause {
				t.Errorf("%d, Baton-Error %q; want %d, %q", res.StatusCode, res.Header.Get("Baton-Error"), test.status, test.cause)
			}
			if body == "" || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
				t.Errorf("body %q of type %q", body, res.Header.Get("Content-Type"))
			}
			if server := res.Header.Get("Server"); server != "" {
				t.Errorf("Server: %s", server)
			}
		})
	}
}

func bodyLimit(c *config.Config) { c.Listeners[0].MaxBodyBytes = 10 }

func TestLargestHeadAndBodyPass(t *testing.T) {
	n := start(t, origin(t, seen), "", bodyLimit)
	c := dial(t, n.web)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nX: " + strings.Repeat("x", 15<<10) + "\r\n\r\n0123456789")
	if res, _ := c.response(); res.StatusCode != 200 {
		t.Error(res.Status)
	}
}

func TestSlowHeadIsCutOff(t *testing.T) {
	n := start(t, origin(t, hello), "", func(c *config.Config) { c.Listeners[0].HeaderTimeout = 100 * time.Millisecond })
	c := dial(t, n.web)
	c.get("/")
	c.response()
	c.send("GET / HTTP/1.1\r\nHost: a")
	if rest, err := io.ReadAll(c.r); err != nil || strings.HasPrefix(string(rest), "HTTP/1.1 200") {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestIdleTimeoutEndsAConnection(t *testing.T) {
	n := start(t, origin(t, hello), "", func(c *config.Config) { c.Listeners[0].IdleTimeout = 100 * time.Millisecond })
	c := dial(t, n.web)
	c.get("/")
	c.response()
	c.ended()
}

func TestResponsesPassAsTheyAre(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header()["Date"] = nil
		w.Header().Set("Content-Length", "5")
		w.Header().Set("X-Method", r.Method)
		io.WriteString(w, "hello")
	}), "")
	c := dial(t, n.web)
	c.get("/")
	res, body := c.response()
	for name := range res.Header {
		if name != "Content-Length" && name != "X-Method" && name != "Date" {
			t.Errorf("%s: %s was added", name, res.Header.Get(name))
		}
	}
	if body != "hello" {
		t.Errorf("body %q", body)
	}
	// HEAD has the length and no body; the next response must not be taken for it.
	c.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
	head, err := http.ReadResponse(c.r, &http.Request{Method: "HEAD"})
	if err != nil || head.ContentLength != 5 || head.Header.Get("X-Method") != "HEAD" {
		t.Errorf("HEAD: %v, %v", head, err)
	}
	c.get("/")
	if _, body := c.response(); body != "hello" {
		t.Errorf("after HEAD: %q", body)
	}
}

func TestProbeIsToldTheGeneration(t *testing.T) {
	n := start(t, origin(t, hello), "", func(c *config.Config) { c.Routes[0].Match.Path = "/there" })
	c := dial(t, n.web)
	for _, path := range []string{"/there", "/missing"} { // our own responses say it too
		c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\nBaton-Probe: 1\r\n\r\n")
		if res, _ := c.response(); res.Header.Get("Baton-Generation") != "7" {
			t.Errorf("%s: generation %q", path, res.Header.Get("Baton-Generation"))
		}
	}
}

func TestTrailersPass(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", r.Trailer.Get("X-Request-Sum"))
	}), "")
	c := dial(t, n.web)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Request-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"3\r\nabc\r\n0\r\nX-Request-Sum: 42\r\n\r\n")
	if res, _ := c.response(); res.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailer %v", res.Trailer)
	}
}

func TestInformationalResponsesPass(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	}), "")
	var hints []string
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, h.Get("Link")))
			return nil
		},
	})
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+n.web, nil)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if len(hints) != 1 || hints[0] != "103</a.css>; rel=preload" {
		t.Errorf("hints %q", hints)
	}
}

func TestExpectationIsTheUpstreams(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	}), "")
	request := func(path string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	}
	c := dial(t, n.web)
	c.send(request("/take"))
	if line, err := c.r.ReadString('\n'); !strings.Contains(line, "100 Continue") {
		t.Fatalf("%q, %v; want 100 before the body", line, err)
	}
	c.r.ReadString('\n')
	c.send("body")
	if _, body := c.response(); body != "body" {
		t.Errorf("body %q", body)
	}
	c = dial(t, n.web)
	c.send(request("/refuse"))
	if res, _ := c.response(); res.StatusCode != http.StatusExpectationFailed {
		t.Errorf("%s, want the upstream's refusal before any body", res.Status)
	}
}

func TestEarlyResponseDoesNotWaitForTheBody(t *testing.T) {
	n := start(t, serveTCP(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
		io.Copy(io.Discard, c)
	}), "")
	c := dial(t, n.web)
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nxxxx")
	if _, body := c.response(); body != "early" {
		t.Errorf("body %q", body)
	}
}

func TestSlowBodyIsNotHeldBack(t *testing.T) {
	proceed := make(chan struct{})
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		<-proceed
		io.WriteString(w, "b")
	}), "")
	c := dial(t, n.web)
	c.get("/")
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	if _, err := io.ReadFull(res.Body, one); err != nil {
		t.Fatal(err)
	}
	close(proceed)
	if rest, err := io.ReadAll(res.Body); string(one)+string(rest) != "ab" {
		t.Errorf("%q%q, %v", one, rest, err)
	}
}

func TestTruncatedResponseIsSeenAsTruncated(t *testing.T) {
	n := start(t, serveTCP(t, func(c *net.TCPConn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	}), "")
	c := dial(t, n.web)
	c.get("/")
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestClientThatLeavesEndsTheUpstreamRequest(t *testing.T) {
	begun, gone := make(chan struct{}, 1), make(chan struct{})
	var once atomic.Bool
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		if !once.Swap(true) {
			close(gone)
		}
	}), "")
	c := dial(t, n.web)
	c.get("/")
	<-begun
	c.Close()
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the upstream still works for nobody")
	}
}
