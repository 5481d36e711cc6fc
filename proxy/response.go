package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/proxy/listener"
)

const (
	// errorHeader names the cause of a response that is ours and not the upstream's.
	errorHeader = "Baton-Error"
	// probeHeader asks who answers: generationHeader and serverIDHeader tell.
	probeHeader      = "Baton-Probe"
	generationHeader = "Baton-Generation"
	serverIDHeader   = "Baton-Server-Id"
)

// errRouteTimeout is the cause of a context whose response's head came too late.
var errRouteTimeout = errors.New("no response within the route's timeout")

// failure is a response of ours. Its name is pinned: people search logs for it.
type failure struct {
	status int
	grpc   int // what a gRPC client is told instead
	name   string
	text   string
}

// The statuses of gRPC that we answer with, as its clients read the status of a
// proxy that does not know gRPC.
const (
	grpcUnknown           = 2
	grpcResourceExhausted = 8
	grpcUnimplemented     = 12
	grpcInternal          = 13
	grpcUnavailable       = 14
)

var (
	failNoRoute      = failure{http.StatusNotFound, grpcUnimplemented, "no-route", "no route matches this host and path"}
	failMalformed    = failure{http.StatusBadRequest, grpcInternal, "request-malformed", "the request is malformed"}
	failMethod       = failure{http.StatusNotImplemented, grpcUnimplemented, "method", "this method is not forwarded"}
	failBody         = failure{http.StatusBadRequest, grpcInternal, "request-body", "the request's body could not be read"}
	failBodyTooLarge = failure{http.StatusRequestEntityTooLarge, grpcResourceExhausted, "body-too-large", "the request's body exceeds the limit"}
	failNoUpstream   = failure{http.StatusServiceUnavailable, grpcUnavailable, "no-upstream", "no upstream of this route has any weight"}
	failConnect      = failure{http.StatusBadGateway, grpcUnavailable, "upstream-connect", "no endpoint of the upstream could be reached"}
	failUpstream     = failure{http.StatusBadGateway, grpcUnavailable, "upstream-response", "the upstream gave no valid response"}
	failTimeout      = failure{http.StatusGatewayTimeout, grpcUnavailable, "upstream-timeout", "the upstream did not answer in time"}
	failInternal     = failure{http.StatusInternalServerError, grpcUnknown, "internal", "the proxy failed on this request"}
)

// isGRPC reports whether the client expects the answer in the form of gRPC.
func isGRPC(r *http.Request) bool {
	kind := r.Header.Get("Content-Type")
	return kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+")
}

// response is the way to the client. It adds to the head what the connection
// needs, at the moment the head is written and not before: a drain may begin
// while the upstream is thinking.
type response struct {
	http.ResponseWriter

	draining   *atomic.Bool // nil where the head is not what ends the connection
	grpc       bool
	old        bool   // the client speaks HTTP/1.0
	generation uint64 // shown to the client; 0 if it did not ask
	altSvc     string // the alternative service to announce (RFC 7838); empty: none
	serverID   uint32 // shown with it
	webSocket  bool   // what the client asked to change to, if to anything
	status     int    // 0 until the head is written
	left       int64  // octets of the body to come; negative if not known

	start   time.Time     // of the request; zero: head is not wanted
	head    time.Duration // from there until the head was written; 0: it was not
	failed  failure       // why the answer is ours
	aborted bool          // the response is not whole
	paniced bool          // by a fault of ours
	probe   bool          // the client says that it probes
}

// Unwrap lets http.ResponseController through.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader writes the head, or an informational one before it.
func (w *response) WriteHeader(status int) {
	if status < 200 && w.old {
		return // it would take that for the response (RFC 9110, 15.2)
	}
	if status >= 200 && w.status == 0 {
		w.finishHead()
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) finishHead() {
	header := w.Header()
	if w.draining != nil && w.draining.Load() {
		header.Set("Connection", "close")
	}
	if w.altSvc != "" {
		header.Set("Alt-Svc", w.altSvc)
	}
	if w.generation != 0 {
		header.Set(generationHeader, strconv.FormatUint(w.generation, 10))
		header.Set(serverIDHeader, strconv.FormatUint(uint64(w.serverID), 10))
	}
	if _, ok := header["Content-Type"]; !ok {
		header["Content-Type"] = nil // or net/http would guess one
	}
	if !w.start.IsZero() {
		w.head = time.Since(w.start)
	}
	w.left = -1
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil {
		w.left = n
	}
}

// Write writes a part of the body. A part that is not the last goes out at
// once: the upstream may take its time for the next.
func (w *response) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	if w.left >= 0 {
		if w.left -= int64(n); w.left > 0 && err == nil {
			err = http.NewResponseController(w.ResponseWriter).Flush()
		}
	}
	return n, err
}

// Hijack takes the connection out of HTTP after 101.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.status = http.StatusSwitchingProtocols
	if !w.start.IsZero() {
		w.head = time.Since(w.start)
	}
	return conn.(*listener.Conn).Upgrade(rw.Reader, w.webSocket), rw, nil
}

// fail answers in place of the upstream.
func (w *response) fail(f failure) {
	w.failed = f
	header := w.Header()
	clear(header) // what an informational response may have left
	header.Set(errorHeader, f.name)
	if w.grpc {
		header.Set("Content-Type", "application/grpc")
		header.Set("Grpc-Status", strconv.Itoa(f.grpc))
		header.Set("Grpc-Message", f.text)
		w.WriteHeader(http.StatusOK)
		return
	}
	header.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(f.status)
	io.WriteString(w.ResponseWriter, f.text+"\n")
}
