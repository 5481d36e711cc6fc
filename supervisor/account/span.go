package account

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// RequestSpan is the span of a request, made after the fact of what a generation
// has kept in its ledger.
type RequestSpan struct {
	ledger.Record
	Generation uint64
	Began      time.Time
	Listener   string // names of what the record has numbers for
	Route      string // see [ledger.Reading.RouteName]
}

// Notable says that the request failed, or took its time.
func (r *RequestSpan) Notable() bool {
	return r.Flags&(ledger.Erred|ledger.Slow|ledger.Anomalous) != 0
}

// Context is what a span of another trace links to.
func (r *RequestSpan) Context() oteltrace.SpanContext {
	return oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: r.TraceID, SpanID: r.SpanID, TraceFlags: oteltrace.FlagsSampled, Remote: true,
	})
}

// Span is the request by the semantic conventions for HTTP and network; release is the
// one it belongs to, 0 none.
func (r *RequestSpan) Span(release uint64) *tracepb.Span {
	span := &tracepb.Span{
		TraceId: r.TraceID[:], SpanId: r.SpanID[:], Name: requestName(r), Kind: tracepb.Span_SPAN_KIND_SERVER,
		StartTimeUnixNano: uint64(r.Began.UnixNano()), EndTimeUnixNano: uint64(r.Began.Add(r.Duration).UnixNano()),
		Flags: uint32(oteltrace.FlagsSampled),
	}
	if r.ParentID != [8]byte{} {
		span.ParentSpanId = r.ParentID[:]
		span.Flags |= uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK | tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
	}
	text := func(key, value string) {
		if value != "" {
			span.Attributes = append(span.Attributes, trace.TextValue(key, value))
		}
	}
	number := func(key string, value int64) {
		span.Attributes = append(span.Attributes, trace.IntValue(key, value))
	}
	if release != 0 {
		number(string(trace.ReleaseID), int64(release))
	}
	number(string(trace.Generation), int64(r.Generation))
	text(string(trace.Listener), r.Listener)
	text(string(trace.Arm), r.Arm.String())
	text(string(trace.Route), r.Route)
	text(string(trace.Upstream), r.Upstream)
	text(string(trace.Kept), keptFor(r.Flags))
	number(string(trace.Flow), int64(r.Flow))
	number(string(trace.FlowRequest), int64(r.Index))
	number(string(trace.FlowAge), r.FlowAge.Milliseconds())
	protocolOf(r, text)
	if r.Method != "" {
		method := r.Method
		if !known(method) {
			text("http.request.method_original", method)
			method = "_OTHER"
		}
		text("http.request.method", method)
		text("url.scheme", schemeOf(r.Flags))
	}
	text("url.path", r.Path)
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	text("server.address", host)
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		number("server.port", int64(n))
	}
	if client, err := netip.ParseAddrPort(r.Client); err == nil {
		text("client.address", client.Addr().String())
		number("client.port", int64(client.Port()))
		text("network.peer.address", client.Addr().String())
		number("network.peer.port", int64(client.Port()))
	}
	if r.Status != 0 {
		number("http.response.status_code", int64(r.Status))
	}
	if r.Flags&ledger.Erred != 0 {
		kind := r.Error
		switch {
		case kind != "":
		case r.Status != 0:
			kind = strconv.Itoa(r.Status)
		default:
			kind = r.Class.String()
		}
		text("error.type", kind)
		span.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	if r.Head > 0 {
		span.Events = append(span.Events, &tracepb.Span_Event{
			Name: trace.EventHead, TimeUnixNano: uint64(r.Began.Add(r.Head).UnixNano()),
		})
	}
	return span
}

// requestName has few values, as the conventions want it.
func requestName(r *RequestSpan) string {
	switch {
	case r.Method == "":
		return r.Protocol.String()
	case !known(r.Method):
		return "HTTP"
	}
	return r.Method
}

// known reports whether the conventions know a method of HTTP: those of RFC 9110,
// PATCH (RFC 5789) and QUERY.
func known(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY":
		return true
	}
	return false
}

func schemeOf(f ledger.Flags) string {
	if f&ledger.Secure != 0 {
		return "https"
	}
	return "http"
}

func protocolOf(r *RequestSpan, text func(key, value string)) {
	name, version, transport := "", "", "tcp"
	switch r.Protocol {
	case ledger.HTTP1:
		name, version = "http", "1.1"
	case ledger.HTTP2:
		name, version = "http", "2"
	case ledger.HTTP3:
		name, version, transport = "http", "3", "udp"
	case ledger.WebSocket:
		name = "websocket"
	case ledger.UDP:
		transport = "udp"
	}
	text("network.protocol.name", name)
	text("network.protocol.version", version)
	text("network.transport", transport)
}

// keptFor says why a request's span was kept.
func keptFor(f ledger.Flags) string {
	all := ""
	for _, reason := range []struct {
		flag ledger.Flags
		name string
	}{
		{ledger.Erred, "error"}, {ledger.Slow, "slow"}, {ledger.Anomalous, "anomalous"},
		{ledger.Probing, "probe"}, {ledger.Sampled, "sampled"}, {ledger.Chance, "chance"},
	} {
		if f&reason.flag != 0 {
			if all != "" {
				all += ","
			}
			all += reason.name
		}
	}
	return all
}
