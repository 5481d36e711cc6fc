package demo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// What the origin of the built-in example listens on.
const (
	DefaultOriginAddress = "127.0.0.1:9001"
	DefaultEchoAddress   = "127.0.0.1:9002"
)

// shaTrailer is the trailer in which /slow sends the SHA-256 of its body.
const shaTrailer = "X-Sha256"

// Origin is the backend of the demo and of the built-in example. Over HTTP/1.1,
// and over HTTP/2 without TLS:
//
//	/               a few words for people
//	/small?seed=    512 bytes of the seed's pattern
//	/slow?ms=&kb=&seed=
//	                kb KiB spread over ms milliseconds, their SHA-256 as a trailer
//	/upload         reads the body, answers its length and SHA-256 as JSON
//	/events?n=&seed= n server-sent events, one each 50 ms
//	/ws             WebSocket echo
//	/demo.Echo/     gRPC: Unary answers a message, Stream each of many
//
// and on a second port a TCP echo that answers a half close with its own.
type Origin struct {
	http      *http.Server
	web       net.Listener
	echo      net.Listener
	datagrams net.PacketConn // nil: it echoes none
	running   sync.WaitGroup
	answered  atomic.Int64 // requests for /small

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]struct{} // those http.Server does not close: echo and WebSocket
}

// StartOrigin listens on both addresses (host:port, port 0 for any) and serves
// until [Origin.Close].
func StartOrigin(httpAddress, echoAddress string) (*Origin, error) {
	return Place{}.orLoopback().startOrigin(httpAddress, echoAddress)
}

func (p Place) startOrigin(httpAddress, echoAddress string) (*Origin, error) {
	web, err := p.Listen(httpAddress)
	if err != nil {
		return nil, fmt.Errorf("start origin: %w", err)
	}
	echo, err := p.Listen(echoAddress)
	if err != nil {
		web.Close()
		return nil, fmt.Errorf("start origin: %w", err)
	}
	o := &Origin{web: web, echo: echo, conns: make(map[net.Conn]struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) {
		o.answered.Add(1)
		small(w, r)
	})
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/upload", upload)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/ws", o.webSocket)
	mux.HandleFunc(grpcUnary, echoCall)
	mux.HandleFunc(grpcStream, echoMessages)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	o.http = &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	o.running.Go(func() { o.http.Serve(web) })
	o.running.Go(o.serveEcho)
	return o, nil
}

// HTTPAddress is the host:port of the HTTP server.
func (o *Origin) HTTPAddress() string { return o.web.Addr().String() }

// EchoAddress is the host:port of the TCP echo.
func (o *Origin) EchoAddress() string { return o.echo.Addr().String() }

// Answered counts the requests for /small.
func (o *Origin) Answered() int64 { return o.answered.Load() }

// Close cuts every connection and returns when nothing of the origin runs any more.
func (o *Origin) Close() error {
	err := errors.Join(o.http.Close(), o.echo.Close())
	if o.datagrams != nil {
		err = errors.Join(err, o.datagrams.Close())
	}
	o.mu.Lock()
	o.closed = true
	for c := range o.conns {
		c.Close()
	}
	o.mu.Unlock()
	o.running.Wait()
	return err
}

// serve runs handle on a connection that Close must cut.
func (o *Origin) serve(c net.Conn, handle func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		c.Close()
		return
	}
	o.conns[c] = struct{}{}
	o.running.Go(func() {
		handle()
		c.Close()
		o.mu.Lock()
		delete(o.conns, c)
		o.mu.Unlock()
	})
}

func (o *Origin) serveEcho() {
	for {
		c, err := o.echo.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, or a connection that was gone already
			time.Sleep(10 * time.Millisecond)
			continue
		}
		// io.Copy ends at the peer's half close; closing then sends ours after the last byte.
		o.serve(c, func() { io.Copy(c, c) })
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	io.WriteString(w, "This is Baton's built-in origin. Try /slow?ms=3000&kb=64 during a release.\n")
}

const smallSize = 512

func small(w http.ResponseWriter, r *http.Request) {
	seed, err := number(r, "seed", 1<<32-1)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write(patternBytes(uint32(seed), smallSize))
}

// slowTick is how often a slow body moves, in either direction.
const slowTick = 50 * time.Millisecond

func slow(w http.ResponseWriter, r *http.Request) {
	ms, err1 := number(r, "ms", 600_000)
	kb, err2 := number(r, "kb", 64<<10)
	seed, err3 := number(r, "seed", 1<<32-1)
	if err := errors.Join(err1, err2, err3); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", shaTrailer)
	w.Header().Set("Content-Type", "application/octet-stream")
	flush := http.NewResponseController(w)
	flush.Flush()

	steps := max(1, ms/int(slowTick/time.Millisecond))
	body, hash := &pattern{seed: uint32(seed), size: kb << 10}, sha256.New()
	for i := range steps {
		piece := int64(body.size*(i+1)/steps - body.off)
		if _, err := io.CopyN(io.MultiWriter(w, hash), body, piece); err != nil {
			return
		}
		flush.Flush()
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond / time.Duration(steps)):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set(shaTrailer, hex.EncodeToString(hash.Sum(nil)))
}

// receipt is what /upload answers.
type receipt struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	n, err := io.Copy(hash, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(receipt{n, hex.EncodeToString(hash.Sum(nil))})
}

func (o *Origin) webSocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" || r.Header.Get("Upgrade") != "websocket" {
		http.Error(w, "only WebSocket here", http.StatusUpgradeRequired)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	o.serve(c, func() {
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Accept: %s\r\n\r\n", acceptKey(key))
		echoFrames(c, rw.Reader)
	})
}

// events sends events, each with its number, the seed and the time in Unix nanoseconds.
func events(w http.ResponseWriter, r *http.Request) {
	n, err1 := number(r, "n", 100_000)
	seed, err2 := number(r, "seed", 1<<32-1)
	if err := errors.Join(err1, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	for i := range n {
		fmt.Fprintf(w, "data: %d %d %d\n\n", i, seed, time.Now().UnixNano())
		if err := flush.Flush(); err != nil {
			return
		}
		select {
		case <-time.After(slowTick):
		case <-r.Context().Done():
			return
		}
	}
}

// number reads a query parameter between 0 and limit; absent means 0.
func number(r *http.Request, name string, limit int) (int, error) {
	return atMost(r.URL.Query().Get(name), name, limit)
}

func atMost(text, name string, limit int) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("%s=%q is not a number from 0 to %d", name, text, limit)
	}
	return n, nil
}
