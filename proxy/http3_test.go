package proxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/quicid"
)

// quicToo serves HTTP/3 beside https.
func quicToo(c *config.Config) {
	https(c)
	c.Listeners[0].HTTP3 = true
}

// quicClient is a client of HTTP/3 that keeps its one connection.
type quicClient struct {
	*http.Client
	transport *http3.Transport
	dialled   atomic.Int64
	last      atomic.Pointer[quic.Conn]
}

func newQUICClient(t *testing.T, secure *tls.Config) *quicClient {
	t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: socket}
	c := new(quicClient)
	c.transport = &http3.Transport{
		TLSClientConfig: secure,
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: 20 * time.Second, MaxIdleTimeout: time.Minute},
		Dial: func(ctx context.Context, address string, secure *tls.Config, cfg *quic.Config) (*quic.Conn, error) {
			to, err := net.ResolveUDPAddr("udp", address)
			if err != nil {
				return nil, err
			}
			c.dialled.Add(1)
			conn, err := tr.DialEarly(ctx, to, secure, cfg)
			c.last.Store(conn)
			return conn, err
		},
	}
	c.Client = &http.Client{Transport: c.transport}
	t.Cleanup(func() {
		c.transport.Close()
		tr.Close()
		socket.Close()
	})
	return c
}

func fetch(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestHTTP3(t *testing.T) {
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "Sum")
		io.WriteString(w, r.Method+" "+r.URL.Path+" "+strings.ToUpper(string(body)))
		w.Header().Set("Sum", "42")
	})
	n := start(t, web, "", quicToo)
	c := newQUICClient(t, clientTLS())
	res, body := fetch(t, c.Client, "https://"+n.udp+"/a")
	if res.ProtoMajor != 3 || body != "GET /a " || res.Trailer.Get("Sum") != "42" {
		t.Errorf("%s %q %v", res.Proto, body, res.Trailer)
	}
	res, err := c.Post("https://"+n.udp+"/b", "text/plain", strings.NewReader("word"))
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(res.Body)
	if string(got) != "POST /b WORD" {
		t.Errorf("%q", got)
	}
	if res.Header.Get("Alt-Svc") != "" {
		t.Error("HTTP/3 announces itself to who speaks it")
	}
	// The older versions tell their clients of it.
	old := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS(), DisableKeepAlives: true}}
	if res, _ := fetch(t, old, "https://"+n.web); !strings.HasPrefix(res.Header.Get("Alt-Svc"), `h3=":`) {
		t.Errorf("Alt-Svc: %q", res.Header.Get("Alt-Svc"))
	}
}

// A request that ends with its head has no body upstream either. Whether its end has
// come with the head is the client's doing: of many some do. One that has a body, of
// known length or not, keeps it.
func TestHTTP3WithoutBody(t *testing.T) {
	var without, chunked atomic.Int64
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == "PURGE" { // net/http looks by itself whether a GET has a body
			if len(r.TransferEncoding) == 0 {
				without.Add(1)
			} else {
				chunked.Add(1)
			}
		}
		w.Write(body)
	})
	n := start(t, web, "", quicToo)
	c := newQUICClient(t, clientTLS())
	eventually(t, "a request without a body", func() bool {
		for _, body := range []io.Reader{strings.NewReader("known"), io.MultiReader(strings.NewReader("known"))} {
			res, err := c.Post("https://"+n.udp, "text/plain", body)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(res.Body); string(got) != "known" || err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
		req, err := http.NewRequest("PURGE", "https://"+n.udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(res.Body); len(got) > 0 || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		return without.Load() > 0
	})
	t.Logf("%d without, %d in chunks", without.Load(), chunked.Load())
}

// A request that nobody reads must not look like a failure to the client.
func TestHTTP3UnreadBody(t *testing.T) {
	web := origin(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "early") })
	n := start(t, web, "", quicToo)
	c := newQUICClient(t, clientTLS())
	res, err := c.Post("https://"+n.udp, "text/plain", bytes.NewReader(make([]byte, 100<<10)))
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(res.Body); string(body) != "early" || err != nil {
		t.Errorf("%q, %v", body, err)
	}
}

// A drain lets the request on its way finish, and the client leaves by itself.
func TestHTTP3Drains(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(begun)
			<-release
		}
		io.WriteString(w, "whole")
	})
	n := start(t, web, "", quicToo)
	c := newQUICClient(t, clientTLS())
	got := make(chan string)
	go func() {
		_, body := fetch(t, c.Client, "https://"+n.udp+"/slow")
		got <- body
	}()
	<-begun
	n.term()
	// Until its goodbye is out it takes what comes: nobody is refused.
	other := newQUICClient(t, clientTLS())
	if _, body := fetch(t, other.Client, "https://"+n.udp+"/quick"); body != "whole" {
		t.Errorf("during the drain: %q", body)
	}
	select {
	case <-n.done:
		t.Fatal("ended under a request")
	case <-time.After(1500 * time.Millisecond): // past the goodbye
	}
	close(release)
	if body := <-got; body != "whole" {
		t.Errorf("%q", body)
	}
	n.drained(listener.Tally{})
}

// The last call cuts the request that does not end, and counts it.
func TestHTTP3LastCall(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
	})
	n := start(t, web, "", quicToo, func(c *config.Config) { c.Release.DrainTimeout = time.Second })
	c := newQUICClient(t, clientTLS())
	failed := make(chan error)
	go func() {
		res, err := c.Get("https://" + n.udp)
		if err == nil {
			_, err = io.ReadAll(res.Body)
		}
		failed <- err
	}()
	<-begun
	n.term()
	n.lastCall()
	if err := <-failed; err == nil {
		t.Error("the request was not cut")
	}
	n.drained(listener.Tally{Cut: 1})
}

// withKeys gives a generation shared keys and a place.
func withKeys(t *testing.T, page *keys.Page, slot uint8) func(*proxy.Options) {
	t.Helper()
	r, err := keys.Open(page.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return func(o *proxy.Options) { o.Keys, o.ServerID, o.Slot = r, 42, slot }
}

// A client resumes with the next generation, and sends its request before the
// handshake is complete. One that changes something waits for it.
func TestEarlyDataOverGenerations(t *testing.T) {
	web := origin(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Method) })
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { page.Close() })
	first := startWith(t, withKeys(t, page, 1), web, "", quicToo)
	second := startWith(t, withKeys(t, page, 2), web, "", quicToo)

	secure := clientTLS()
	secure.ServerName = "127.0.0.1"
	secure.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	began := newQUICClient(t, secure)
	fetch(t, began.Client, "https://"+first.udp)
	// The ticket comes after the handshake.
	eventually(t, "a ticket", func() bool {
		s, ok := secure.ClientSessionCache.Get("127.0.0.1")
		return ok && s != nil
	})
	for _, method := range []string{http3.MethodGet0RTT, http.MethodPost} {
		c := newQUICClient(t, secure)
		req, err := http.NewRequest(method, "https://"+second.udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if state := c.last.Load().ConnectionState(); !state.TLS.DidResume || method == http3.MethodGet0RTT && !state.Used0RTT {
			t.Errorf("%s: resumed %t, early data %t", method, state.TLS.DidResume, state.Used0RTT)
		}
		if want := strings.TrimSuffix(method, "_0RTT"); string(body) != want {
			t.Errorf("%s arrived as %q", method, body)
		}
	}
}

// What a client is told to send names the generation and its worker.
func TestConnectionIDsNameTheGeneration(t *testing.T) {
	web := origin(t, hello)
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { page.Close() })
	n := startWith(t, withKeys(t, page, 9), web, "", quicToo)

	// A relay that looks at what the client sends.
	to, err := net.ResolveUDPAddr("udp", n.udp)
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close(); back.Close() })
	var client atomic.Pointer[net.UDPAddr]
	owners := make(chan quicid.ID, 100)
	go func() {
		b := make([]byte, 2048)
		for {
			k, from, err := front.ReadFromUDP(b)
			if err != nil {
				return
			}
			client.Store(from)
			if b[0]&0x80 == 0 && k > quicid.Len {
				id, _ := quicid.Decode(b[1 : 1+quicid.Len])
				select {
				case owners <- id:
				default:
				}
			}
			back.Write(b[:k])
		}
	}()
	go func() {
		b := make([]byte, 2048)
		for {
			k, err := back.Read(b)
			if err != nil {
				return
			}
			front.WriteToUDP(b[:k], client.Load())
		}
	}()
	c := newQUICClient(t, clientTLS())
	fetch(t, c.Client, "https://"+front.LocalAddr().String())
	if id := <-owners; id != (quicid.ID{ServerID: 42, Slot: 9}) {
		t.Errorf("the connection ID names %+v", id)
	}
}

func TestHTTP3AtItsBound(t *testing.T) {
	n := start(t, origin(t, hello), "", quicToo, func(c *config.Config) { c.Listeners[0].MaxConnections = 1 })
	first := newQUICClient(t, clientTLS())
	fetch(t, first.Client, "https://"+n.udp)
	second := newQUICClient(t, clientTLS())
	if _, err := second.Get("https://" + n.udp); err == nil {
		t.Error("a second connection is served")
	}
	first.transport.Close()
	eventually(t, "room again", func() bool {
		res, err := newQUICClient(t, clientTLS()).Get("https://" + n.udp)
		if err == nil {
			res.Body.Close()
		}
		return err == nil
	})
}
