package proxy

import (
	"net/http"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

// account is what the ledger is told of one request. The span of a request is
// made of it after the fact, and only if there is reason to keep one.
type account struct {
	call  ledger.Call
	start time.Time
	conn  listener.Connection
	trace traceContext
	span  [8]byte // ours, if it had to be known before the end

	// traceparent goes upstream in place of the client's, so that the spans there
	// are children of ours. Empty where the client does not sample: a parent that
	// is only kept if something goes wrong later must not be named to anybody.
	traceparent string
}

// account begins the account of a request.
func (h *handler) account(conn listener.Connection, w *response, r *http.Request, start time.Time) account {
	a := account{call: conn.Flow().Begin(start), start: start, conn: conn}
	if !a.call.Kept() {
		return a
	}
	w.start = start
	if fields := r.Header["Traceparent"]; len(fields) == 1 {
		a.trace = parseTraceparent(fields[0])
	}
	if a.trace.sampled {
		a.span = ledger.NewSpanID()
		a.traceparent = a.trace.child(a.span)
	}
	return a
}

// end ends the account when the response is complete, or never will be.
func (a *account) end(h *handler, w *response, r *http.Request, ex *exchange) {
	if !a.call.Kept() {
		return
	}
	took := time.Since(a.start) // reads one clock where time.Now reads two
	record := ledger.Record{
		Key:     ledger.Key{Route: ledger.NoRoute, Class: a.class(w, r)},
		TraceID: a.trace.traceID, ParentID: a.trace.parentID, SpanID: a.span,
		Status: w.status, Head: w.head,
		Method: r.Method, Host: r.Host, Path: r.URL.Path, Client: r.RemoteAddr, Error: w.failed.name,
	}
	switch {
	case w.status == http.StatusSwitchingProtocols:
		record.Protocol = ledger.WebSocket
	case r.ProtoMajor == 3:
		record.Protocol = ledger.HTTP3
	case r.ProtoMajor == 2:
		record.Protocol = ledger.HTTP2
	}
	if ex != nil {
		record.Route = h.g.routes[ex.route.Index]
		if ex.endpoint != nil {
			record.Upstream = ex.endpoint.Address
		}
	}
	if a.trace.sampled {
		record.Flags |= ledger.Sampled
	}
	if h.cfg.Protocol == config.HTTPS {
		record.Flags |= ledger.Secure
	}
	if w.probe {
		record.Flags |= ledger.Probing
	}
	if w.paniced || a.conn.Cut() {
		record.Flags |= ledger.Anomalous
	}
	a.call.End(&record, took)
}

// class is how the request ended.
func (a *account) class(w *response, r *http.Request) ledger.Class {
	switch {
	case w.status == http.StatusSwitchingProtocols:
		return ledger.Status1xx
	case w.aborted && r.Context().Err() != nil:
		return ledger.Left
	case w.aborted || w.status == 0:
		return ledger.Aborted
	case w.failed.status != 0:
		return ledger.ClassOf(w.failed.status) // of gRPC, too, whose own status is 200
	case w.grpc && failedGRPC(w.Header()):
		return ledger.Status5xx
	}
	return ledger.ClassOf(w.status)
}

// failedGRPC reports whether a response of gRPC has a status that is an error of
// the server: the one list that OpenTelemetry's conventions for gRPC have.
func failedGRPC(h http.Header) bool {
	status := h["Grpc-Status"]
	if status == nil {
		status = h[http.TrailerPrefix+"Grpc-Status"]
	}
	if len(status) == 0 {
		return false
	}
	switch status[0] {
	case "2", "4", "12", "13", "14", "15": // unknown, deadline exceeded, unimplemented, internal, unavailable, data loss
		return true
	}
	return false
}
