package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/proxy/router"
	"github.com/baton-mesh/baton/proxy/upstream"
)

// handler serves the requests of one listener, whatever version of HTTP they
// came by.
type handler struct {
	g       *Generation
	cfg     config.Listener
	table   *router.Table
	forward httputil.ReverseProxy
	altSvc  string // what tells clients of older versions of HTTP/3
	log     *slog.Logger
}

func newHandler(g *Generation, l config.Listener, table *router.Table) *handler {
	h := &handler{g: g, cfg: l, table: table, log: g.opts.Log.With("listener", l.Name)}
	h.altSvc = fmt.Sprintf(`h3=":%d"; ma=86400`, l.AddrPort().Port())
	h.forward = httputil.ReverseProxy{
		Rewrite:      h.rewrite,
		Transport:    roundTripper{},
		BufferPool:   &bodyBuffers,
		ErrorHandler: h.forwardFailed,
		ErrorLog:     slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	return h
}

// exchange is what the stages of one request share.
type exchange struct {
	route    *router.Route
	upstream *upstream.Upstream
	endpoint *upstream.Endpoint // once the response's head is there
	deadline *time.Timer        // of the response's head; nil without one
	body     requestBody

	traceparent string // to be sent in place of the client's; empty: the client's
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange { return ctx.Value(exchangeKey{}).(*exchange) }

// ServeHTTP takes one request from routing to the last byte of its response.
func (h *handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	conn := listener.FromContext(r.Context())
	if !conn.Begin() {
		panic(http.ErrAbortHandler)
	}
	w := &response{
		ResponseWriter: rw,
		grpc:           isGRPC(r),
		old:            r.ProtoMajor == 1 && r.ProtoMinor == 0,
		webSocket:      strings.EqualFold(r.Header.Get("Upgrade"), "websocket"),
	}
	if r.ProtoMajor == 1 {
		w.draining = &h.g.draining
	}
	if h.cfg.HTTP3 && r.ProtoMajor < 3 {
		w.altSvc = h.altSvc
	}
	if r.Header.Get(probeHeader) == "1" {
		w.probe = true
		w.generation, w.serverID = h.g.opts.Generation, h.g.cfg.Node.ServerID
	}
	start := time.Now()
	account, ex := h.account(conn, w, r, start), (*exchange)(nil)
	defer func() { account.end(h, w, r, ex) }()
	defer h.contain(w, r)

	dropTrailers(r)
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		body := chunkedBody(r)
		r.Body = body
		defer body.endUnlessWhole(rw)
	}
	if ex = h.accept(w, r); ex == nil {
		return
	}
	ex.traceparent = account.traceparent
	ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), exchangeKey{}, ex))
	defer cancel(nil)
	if ex.route.Timeout > 0 {
		ex.deadline = time.AfterFunc(ex.route.Timeout, func() { cancel(errRouteTimeout) })
		defer ex.deadline.Stop()
	}
	defer func() {
		if ex.endpoint != nil {
			ex.endpoint.Release()
		}
		if !h.log.Enabled(r.Context(), slog.LevelDebug) {
			return // before the arguments cost anything
		}
		h.log.Debug("request", "generation", h.g.opts.Generation, "method", r.Method, "host", r.Host,
			"path", r.URL.Path, "route", ex.route.Name, "upstream", ex.upstream.Name,
			"status", w.status, "took", time.Since(start))
	}()
	h.forward.ServeHTTP(w, r.WithContext(ctx))
}

// accept decides whether the request is served and by which upstream. If not,
// it has answered, and returns nil.
func (h *handler) accept(w *response, r *http.Request) *exchange {
	if r.ContentLength != 0 {
		// Without this the server reads the rest of the body before it lets a
		// response begin, and one that comes early would wait for the client.
		http.NewResponseController(w.ResponseWriter).EnableFullDuplex()
	}
	if cause := w.refusal(r); cause != nil {
		w.fail(*cause)
		return nil
	}
	route := h.table.Lookup(r.Host, routedPath(r))
	if route == nil {
		w.fail(failNoRoute)
		return nil
	}
	u := route.Pick()
	if u == nil {
		w.fail(failNoUpstream)
		return nil
	}
	if limit := int64(h.cfg.MaxBodyBytes); limit > 0 {
		if r.ContentLength > limit {
			w.fail(failBodyTooLarge)
			return nil
		}
		r.Body = http.MaxBytesReader(w.ResponseWriter, r.Body, limit)
	}
	ex := &exchange{route: route, upstream: u}
	ex.body.ReadCloser = r.Body
	r.Body = &ex.body
	return ex
}

// contain keeps a panic to its request.
func (h *handler) contain(w *response, r *http.Request) {
	cause := recover()
	switch {
	case cause == nil:
		return
	case cause != any(http.ErrAbortHandler):
		h.log.Error("panic", "cause", cause, "method", r.Method, "path", r.URL.Path, "stack", string(debug.Stack()))
		w.paniced = true
		if w.status == 0 {
			w.fail(failInternal)
			return
		}
	}
	w.aborted = true
	// Closes the connection, so that the client sees that the response is not whole.
	panic(http.ErrAbortHandler)
}

// roundTripper sends a request to the upstream of its exchange.
type roundTripper struct{}

func (roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	ex := exchangeOf(req.Context())
	res, endpoint, err := ex.upstream.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	ex.endpoint = endpoint
	if res.StatusCode < 100 { // net/http would panic on it
		res.Body.Close()
		return nil, fmt.Errorf("upstream answered with status %03d", res.StatusCode)
	}
	if res.StatusCode == http.StatusSwitchingProtocols && !switchesAsAsked(req, res) {
		// ReverseProxy would refuse it too, but leave the connection open.
		res.Body.Close()
		return nil, errors.New("upstream switched to a protocol that was not asked for")
	}
	if ex.deadline != nil && !ex.deadline.Stop() {
		res.Body.Close()
		return nil, errRouteTimeout
	}
	return res, nil
}

func switchesAsAsked(req *http.Request, res *http.Response) bool {
	asked := req.Header.Get("Upgrade")
	return asked != "" && strings.EqualFold(asked, res.Header.Get("Upgrade"))
}

// forwardFailed answers a request whose upstream has not answered.
func (h *handler) forwardFailed(rw http.ResponseWriter, req *http.Request, err error) {
	w := rw.(*response)
	ex := exchangeOf(req.Context())
	var tooLarge *http.MaxBytesError
	var dial *upstream.DialError
	cause := failUpstream
	switch {
	case errors.As(err, &tooLarge):
		cause = failBodyTooLarge
	case errors.Is(err, errRouteTimeout) || errors.Is(context.Cause(req.Context()), errRouteTimeout):
		cause = failTimeout
	case errors.As(err, &dial):
		cause = failConnect
	case ex.body.failed.Load():
		cause = failBody
	case req.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client has left: nobody to answer
	}
	h.log.Debug("forward", "error", err, "route", ex.route.Name, "upstream", ex.upstream.Name)
	w.fail(cause)
}

// bodyBuffers lends the buffers that bodies pass through. 32 KiB is what the
// kernel hands over at once on a fast path, and what io.Copy would use.
var bodyBuffers buffers

type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

// Put keeps an array pointer, since storing the slice would allocate its header.
func (b *buffers) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }
