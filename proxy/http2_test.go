package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

// selfSigned is a certificate for 127.0.0.1, made once.
var selfSigned = sync.OnceValue(func() config.TLS {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "a.example"},
		DNSNames:              []string{"a.example"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return config.TLS{
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		PrivateKey:  config.Secret(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
})

// https makes the web listener speak it.
func https(c *config.Config) {
	c.Listeners[0].Protocol, c.Listeners[0].TLS = config.HTTPS, selfSigned()
}

// clientTLS trusts the certificate, and nothing else.
func clientTLS() *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(selfSigned().Certificate))
	return &tls.Config{RootCAs: roots}
}

// flavour is a way to speak HTTP/2 to the web listener.
type flavour struct {
	name   string
	scheme string
	config []func(*config.Config)
}

var flavours = []flavour{
	{"https", "https", []func(*config.Config){https}},
	{"h2c", "http", nil},
}

// client speaks HTTP/2 alone, to whichever address is current when it connects.
func (f flavour) client(t *testing.T, current *atomic.Pointer[node]) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(f.scheme == "https")
	protocols.SetUnencryptedHTTP2(f.scheme == "http")
	transport := &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: clientTLS(),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, current.Load().web)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func (f flavour) url(path string) string { return f.scheme + "://127.0.0.1:1" + path }

// eachFlavour runs a test over TLS and without.
func eachFlavour(t *testing.T, test func(t *testing.T, f flavour)) {
	for _, f := range flavours {
		t.Run(f.name, func(t *testing.T) { test(t, f) })
	}
}

// on is a node where clients find it.
func on(n *node) *atomic.Pointer[node] {
	current := new(atomic.Pointer[node])
	current.Store(n)
	return current
}

func count(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "got %d", n)
}

// once is a body that cannot be had again once it has been read from: a request
// that has left must not be refused.
type once struct {
	io.Reader
	read atomic.Bool
}

func (o *once) Read(p []byte) (int, error) {
	o.read.Store(true)
	return o.Reader.Read(p)
}

// post sends a body of a size, once. Where a client of Go's learns of the
// goodbye before it has sent anything, it wants the body anew nevertheless.
func post(client *http.Client, url string, size int) (*http.Response, error) {
	body := &once{Reader: strings.NewReader(strings.Repeat("x", size))}
	req, err := http.NewRequest("POST", url, body)
	if err != nil {
		return nil, err
	}
	req.GetBody = func() (io.ReadCloser, error) {
		if body.read.Load() {
			return nil, errors.New("a request that had left was refused")
		}
		return io.NopCloser(body), nil
	}
	return client.Do(req)
}

func TestHTTP2PostsSeeNoFailureOverGenerations(t *testing.T) {
	web := origin(t, count)
	eachFlavour(t, func(t *testing.T, f flavour) {
		current := on(start(t, web, "", f.config...))
		const clients, posters, generations = 4, 4, 8
		var served atomic.Int64
		stop := make(chan struct{})
		failures := make(chan error, clients*posters)
		for range clients {
			client := f.client(t, current)
			for range posters {
				go func() {
					failures <- func() error {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return nil
							default:
							}
							size := i * 7919 % 40000
							res, err := post(client, f.url("/"), size)
							if err != nil {
								return err
							}
							body, err := io.ReadAll(res.Body)
							res.Body.Close()
							if want := fmt.Sprintf("got %d", size); err != nil || string(body) != want || res.ProtoMajor != 2 {
								return fmt.Errorf("%s, body %q, want %q: %w", res.Proto, body, want, err)
							}
							served.Add(1)
						}
					}()
				}()
			}
		}
		for range generations {
			before := served.Load()
			eventually(t, "requests flow", func() bool { return served.Load() > before+20*clients })
			old := current.Swap(start(t, web, "", f.config...))
			old.stop()
			old.drained(nothing)
		}
		close(stop)
		for range clients * posters {
			if err := <-failures; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestIdleHTTP2ConnectionLeavesInADrain(t *testing.T) {
	web := origin(t, hello)
	eachFlavour(t, func(t *testing.T, f flavour) {
		n := start(t, web, "", f.config...)
		res, err := f.client(t, on(n)).Get(f.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "hello" {
			t.Fatalf("body %q, %v", body, err)
		}
		eventually(t, "idle", func() bool { return n.Counts()[listener.Idle] == 1 })
		n.term()
		n.drained(nothing)
	})
}

func TestHTTP2StreamsFinishInADrain(t *testing.T) {
	proceed := make(chan struct{})
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/head-later":
			<-proceed
			io.WriteString(w, "late")
		case "/body-later":
			io.WriteString(w, "begun,")
			w.(http.Flusher).Flush()
			<-proceed
			io.WriteString(w, "ended")
		case "/upload":
			count(w, r)
		}
	})
	f := flavours[0]
	n := start(t, web, "", f.config...)
	client := f.client(t, on(n))
	type answer struct {
		body string
		err  error
	}
	read := func(res *http.Response, err error) answer {
		if err != nil {
			return answer{err: err}
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return answer{string(body), err}
	}
	head, upload := make(chan answer, 1), make(chan answer, 1)
	go func() { head <- read(client.Get(f.url("/head-later"))) }()
	eventually(t, "a request", func() bool { return n.Counts()[listener.Active] == 1 })
	body, err := client.Get(f.url("/body-later"))
	if err != nil {
		t.Fatal(err)
	}
	from, to := io.Pipe()
	go func() { upload <- read(client.Post(f.url("/upload"), "text/plain", from)) }()
	io.WriteString(to, "some")
	eventually(t, "three requests, on one connection", func() bool {
		return n.Counts() == listener.Counts{listener.Active: 3}
	})
	n.stop()
	io.WriteString(to, "more")
	to.Close()
	if got := <-upload; got != (answer{"got 8", nil}) {
		t.Errorf("upload: %v", got)
	}
	// The client has the end of its answer a little before the proxy's handler returns.
	eventually(t, "two requests that are left", func() bool {
		return n.Counts() == listener.Counts{listener.Active: 2}
	})
	close(proceed)
	if got := <-head; got != (answer{"late", nil}) {
		t.Errorf("head after SIGTERM: %v", got)
	}
	if got := read(body, nil); got != (answer{"begun,ended", nil}) {
		t.Errorf("body: %v", got)
	}
	n.drained(nothing)
}

func TestLastCallCutsHTTP2ByTheStream(t *testing.T) {
	proceed := make(chan struct{})
	defer close(proceed)
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		if r.URL.Path == "/stuck" {
			<-proceed
		}
	})
	eachFlavour(t, func(t *testing.T, f flavour) {
		n := start(t, web, "", append(f.config, func(c *config.Config) { c.Release.DrainTimeout = 300 * time.Millisecond })...)
		client := f.client(t, on(n))
		var stuck []*http.Response
		for range 3 {
			res, err := client.Get(f.url("/stuck"))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			stuck = append(stuck, res)
		}
		n.term()
		n.drained(listener.Tally{Cut: 3})
		for _, res := range stuck {
			if _, err := io.ReadAll(res.Body); err == nil {
				t.Error("a stream that was cut ended as if it were whole")
			}
		}
	})
}

func TestTLSForHTTP1(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto+" "+r.Header.Get("X-Forwarded-Proto"))
	}), "", https)
	transport := &http.Transport{TLSClientConfig: clientTLS()} // no ALPN
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Get("https://" + n.web)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != "HTTP/1.1 https" || res.ProtoMajor != 1 {
		t.Fatalf("%s, body %q, %v", res.Proto, body, err)
	}
	eventually(t, "idle", func() bool { return n.Counts()[listener.Idle] == 1 })
	n.stop()
	n.lastCall()
	// The end of the stream is TLS's own, not a connection that was cut.
	n.drained(listener.Tally{IdleClosed: 1})
}

func TestPlainRequestWhereTLSIsSpoken(t *testing.T) {
	n := start(t, origin(t, hello), "", https)
	c := dial(t, n.web)
	c.get("/")
	if res, body := c.response(); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "https") {
		t.Errorf("%s %q", res.Status, body)
	}
}

func TestEventsPassOneByOne(t *testing.T) {
	next := make(chan string)
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for event := range next {
			io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
	})
	f := flavours[0]
	n := start(t, web, "", f.config...)
	go func() { next <- "data: 0\n\n" }()
	res, err := f.client(t, on(n)).Get(f.url("/"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	event := make([]byte, len("data: 0\n\n"))
	for i := range 5 {
		if i > 0 {
			next <- fmt.Sprintf("data: %d\n\n", i)
		}
		if _, err := io.ReadFull(res.Body, event); err != nil || string(event) != fmt.Sprintf("data: %d\n\n", i) {
			t.Fatalf("event %d is %q, %v", i, event, err)
		}
		if i == 2 {
			n.stop()
		}
	}
	close(next)
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	n.drained(nothing)
}

// The time for a head bounds the look for a preface and the TLS handshake too.
func TestSilentClientIsClosedInTime(t *testing.T) {
	for _, f := range flavours {
		const limit = time.Second
		n := start(t, origin(t, hello), "", append(f.config, func(c *config.Config) { c.Listeners[0].HeaderTimeout = limit })...)
		began := time.Now()
		c := dial(t, n.web)
		io.Copy(io.Discard, c)
		if took := time.Since(began); took < limit || took > limit*17/10 {
			t.Errorf("%s: closed after %v, the limit is %v", f.name, took, limit)
		}
	}
}
