package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func startOrigin(t *testing.T) *Origin {
	t.Helper()
	o, err := StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

func clientOf(web, raw string) *client { return (&Load{HTTP: web, TCP: raw}).client() }

// certified is a certificate, and who trusts it.
func certified(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	dir := t.TempDir()
	if err := WriteCertificate(dir, "test"); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := roots(dir)
	if err != nil {
		t.Fatal(err)
	}
	return pair, pool
}

// loadOn is a load on an origin, with TLS before it.
func loadOn(t *testing.T, o *Origin) *Load {
	t.Helper()
	pair, pool := certified(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server := &http.Server{Handler: o.http.Handler, Protocols: protocols, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}}, ErrorLog: log.New(io.Discard, "", 0)}
	var running sync.WaitGroup
	running.Go(func() { server.ServeTLS(l, "", "") })
	t.Cleanup(func() { server.Close(); running.Wait() })
	return &Load{HTTP: o.HTTPAddress(), HTTPS: l.Addr().String(), TCP: o.EchoAddress(), Roots: pool}
}

// once runs one operation against the addresses, with little patience for streams.
func once(c *client, kind Kind, slow bool) Op { return onceAs(c, kind, slow, onceSeed) }

// onceSeed has kinds with several ways go without TLS and without a body.
const onceSeed = 12347

func onceAs(c *client, kind Kind, slow bool, seed uint32) Op {
	a := attempt{seed: seed, slow: slow}
	if slow || !kind.short() {
		a.long = 150 * time.Millisecond
	}
	return c.run(kind, a)
}

func TestOriginAnswersEveryKind(t *testing.T) {
	load := loadOn(t, startOrigin(t))
	var clients sync.WaitGroup
	defer clients.Wait()
	for _, kind := range Kinds {
		for _, slow := range []bool{false, true} {
			clients.Go(func() {
				c := load.client()
				defer c.close()
				for seed := range uint32(4) { // each way of the kind
					op := onceAs(c, kind, slow, seed)
					if op.Err != nil {
						t.Errorf("%s slow=%t: %v", kind, slow, op.Err)
						return
					}
					if !op.Flow.Client.IsValid() || op.Flow.Server.Port() == 0 || op.Dialled.IsZero() {
						t.Errorf("%s slow=%t: flow %v dialled %v: the connection was not noted", kind, slow, op.Flow, op.Dialled)
					}
					if op.Wait < 0 || op.Wait > op.End.Sub(op.Start) {
						t.Errorf("%s slow=%t: waited %v of %v", kind, slow, op.Wait, op.End.Sub(op.Start))
					}
				}
			})
		}
	}
}

func TestUploadWithAndWithoutLength(t *testing.T) {
	o := startOrigin(t)
	for seed := range uint32(2) {
		a := &attempt{seed: seed, long: 100 * time.Millisecond}
		if err := clientOf(o.HTTPAddress(), "").upload(a); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

func TestLoadRunsEveryKindAndFinishesWhatItBegan(t *testing.T) {
	o := startOrigin(t)
	load := loadOn(t, o)
	load.Stream, load.Slow = 300*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	count := func() map[Kind]int {
		seen := make(map[Kind]int)
		for _, op := range load.Ops() {
			seen[op.Kind]++
		}
		return seen
	}
	var stopped time.Time
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			seen := count()
			if !slices.ContainsFunc(Kinds, func(k Kind) bool { return seen[k] < DefaultClients[k] }) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		stopped = time.Now()
	}()
	load.Run(ctx)
	late := make(map[Kind]int)
	for _, op := range load.Ops() {
		if op.Err != nil {
			t.Errorf("%s: %v", op.Kind, op.Err)
		}
		if op.Start.After(stopped) {
			late[op.Kind]++
		}
	}
	seen := count()
	for _, kind := range Kinds {
		if seen[kind] < DefaultClients[kind] {
			t.Errorf("%s: %d operations of %d clients", kind, seen[kind], DefaultClients[kind])
		}
		// A client may be at the point of beginning one, and no more.
		if late[kind] > DefaultClients[kind] {
			t.Errorf("%s: %d operations begun after the end, by %d clients", kind, late[kind], DefaultClients[kind])
		}
	}
	load.Burst(TCPNew, 20)
	seen = count()
	if seen[TCPNew] < DefaultClients[TCPNew]+20 {
		t.Errorf("%d short echoes, 20 of them in a burst", seen[TCPNew])
	}
	if c := load.Counts(); c.OK != len(load.Ops()) || c.Failed+c.Cut != 0 {
		t.Errorf("%+v for %d operations", c, len(load.Ops()))
	}
}

func TestKeepAliveUsesOneConnectionUntilTold(t *testing.T) {
	var requests atomic.Int32
	address := server(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			n := requests.Add(1)
			more := ""
			if n%3 == 0 {
				more = "Connection: close\r\n"
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n", smallSize, more)
			c.Write(bodyFor(t, req))
			if more != "" {
				return
			}
		}
	})
	c := clientOf(address, "")
	defer c.close()
	var flows []Flow
	for range 6 {
		op := once(c, HTTPKeepAlive, false)
		if op.Err != nil {
			t.Fatal(op.Err)
		}
		flows = append(flows, op.Flow)
	}
	if flows[0] != flows[2] || flows[2] == flows[3] || flows[3] != flows[5] {
		t.Errorf("connections %v; want two, three requests on each", flows)
	}
}

// TestClientsNotice holds every way in which a proxy may break its word to a
// client, each of which must be seen as a failure.
func TestClientsNotice(t *testing.T) {
	answer := func(head string, body func(net.Conn, []byte)) func(net.Conn) {
		return func(c net.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				return
			}
			io.WriteString(c, head+"\r\n\r\n")
			body(c, bodyFor(t, req))
		}
	}
	full := func(c net.Conn, b []byte) { c.Write(b) }
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 512"

	tests := []struct {
		name string
		kind Kind
		runs int // operations until the failure; the earlier ones succeed
		serv func(net.Conn)
		want string
	}{
		{"an idle connection closed without notice", HTTPKeepAlive, 2, answer(ok, full), "closed without an answer|reset|broken pipe"},
		{"no answer", HTTPNew, 1, func(c net.Conn) { http.ReadRequest(bufio.NewReader(c)) }, "closed without an answer"},
		{"half a head", HTTPNew, 1, answer("HTTP/1.1 200 OK", func(net.Conn, []byte) {}), "answer ended after 0"},
		{"a truncated body", HTTPNew, 1, answer(ok, func(c net.Conn, b []byte) { c.Write(b[:100]) }), "after 100 of 512"},
		{"a body that ends with the connection", HTTPNew, 1, answer("HTTP/1.1 200 OK", func(c net.Conn, b []byte) { c.Write(b[:100]) }), "ended after 100 of 512"},
		{"a wrong body", HTTPNew, 1, answer(ok, func(c net.Conn, b []byte) { b[500]++; c.Write(b) }), "wrong bytes"},
		{"bytes after the answer", HTTPNew, 1, answer(ok, func(c net.Conn, b []byte) { c.Write(append(b, 'x')) }), "1 bytes after"},
		{"an error of the proxy", HTTPNew, 1, answer("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 512", full), "status 502"},
		{"a missing trailer", Download, 1, answer("HTTP/1.1 200 OK\r\nContent-Length: 65536", full), "trailer"},
		{"an upload not received whole", Upload, 1, func(c net.Conn) {
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.Copy(io.Discard, req.Body)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{\"bytes\":1,\"sha256\":\"0\"}")
			}
		}, "origin got 1 bytes"},
		{"a handshake refused", WebSocket, 1, answer(ok, full), "status 200"},
		{"a wrong echo of a message", WebSocket, 1, webSocketServer(func(c net.Conn, f frame) bool {
			f.payload[0]++
			return writeFrame(c, f, false) == nil
		}), "not what was sent"},
		{"a WebSocket closed without a frame", WebSocket, 1, webSocketServer(func(net.Conn, frame) bool { return false }), "unexpected EOF|reset"},
		{"a WebSocket closed with another code", WebSocket, 1, webSocketServer(func(c net.Conn, f frame) bool {
			writeFrame(c, closeFrame(1011), false)
			return false
		}), "code 1011"},
		{"a wrong echo", TCP, 1, func(c net.Conn) { b := make([]byte, 300); io.ReadFull(c, b); b[0]++; c.Write(b) }, "not what was sent"},
		{"a stream that breaks off", TCP, 1, func(c net.Conn) { io.CopyN(c, c, 300) }, "EOF|reset|broken pipe"},
		{"a rest that is lost", TCPNew, 1, func(c net.Conn) { io.CopyN(c, c, 10); io.Copy(io.Discard, c) }, "ended after 10 of 64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address := server(t, tt.serv)
			c := clientOf(address, address)
			defer c.close()
			for range tt.runs - 1 {
				if op := once(c, tt.kind, false); op.Err != nil {
					t.Fatalf("too early: %v", op.Err)
				}
			}
			op := once(c, tt.kind, false)
			if !op.Failed() {
				t.Fatalf("not noticed: %v", op.Err)
			}
			for want := range strings.SplitSeq(tt.want, "|") {
				if strings.Contains(op.Err.Error(), want) {
					return
				}
			}
			t.Errorf("%v; want %s", op.Err, tt.want)
		})
	}
}

func TestNobodyListensIsAFailure(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	load := &Load{HTTP: address, HTTPS: address, TCP: address}
	for _, kind := range Kinds {
		if op := once(load.client(), kind, false); !op.Failed() || op.Flow != (Flow{}) {
			t.Errorf("%s: %v on %v", kind, op.Err, op.Flow)
		}
	}
}

func TestCloseFrame1001IsCutAndNotFailed(t *testing.T) {
	address := server(t, webSocketServer(func(c net.Conn, f frame) bool {
		writeFrame(c, closeFrame(closeGoingAway), false)
		return false
	}))
	op := once(clientOf(address, ""), WebSocket, false)
	if !op.Cut() || op.Failed() || !errors.Is(op.Err, ErrCut) {
		t.Errorf("%v", op.Err)
	}
}

// server serves each connection with handle and closes it.
func server(t *testing.T, handle func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				handle(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); running.Wait() })
	return l.Addr().String()
}

// bodyFor is the body that the origin would send.
func bodyFor(t *testing.T, req *http.Request) []byte {
	seed, err := number(req, "seed", 1<<32-1)
	if err != nil {
		t.Error(err)
	}
	size := smallSize
	if kb, _ := number(req, "kb", 1<<20); kb > 0 {
		size = kb << 10
	}
	return patternBytes(uint32(seed), size)
}

// webSocketServer accepts a handshake and hands each frame to on, until it says no.
func webSocketServer(on func(net.Conn, frame) bool) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: %s\r\n\r\n", acceptKey(req.Header.Get("Sec-WebSocket-Key")))
		for {
			f, err := readFrame(r)
			if err != nil || !on(c, f) {
				return
			}
		}
	}
}
