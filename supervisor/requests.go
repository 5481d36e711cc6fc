package supervisor

import (
	"net"
	"net/netip"
	"strconv"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// mostExamples bounds the requests that a stage links to: the errors first.
const mostExamples = 32

// requestSpans makes spans of what a generation's ledger has kept: requests that
// failed, were slow, anomalous, probes, sampled by their caller, or one in a
// hundred.
func (s *Supervisor) requestSpans(all []RequestSpan) {
	id := all[0].Generation
	spans := make([]*tracepb.Span, len(all))
	s.mu.Lock()
	for i := range all {
		release := s.duringRelease(&all[i])
		if release != 0 {
			s.noteExample(&all[i])
		}
		spans[i] = requestSpan(&all[i], release)
	}
	s.mu.Unlock()
	s.traces.Add(&tracepb.ResourceSpans{
		Resource:   &resourcepb.Resource{Attributes: append(generationTag(s.config.Node.Name, id), trace.TextValue("service.name", "baton-proxy"))},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: trace.Scope}, SchemaUrl: semconv.SchemaURL, Spans: spans}},
	})
}

// generationTag is what says whose spans they are.
func generationTag(node string, generation uint64) []*commonpb.KeyValue {
	return []*commonpb.KeyValue{
		trace.TextValue("service.instance.id", instanceID(node, generation)),
		trace.IntValue(string(trace.Generation), int64(generation)),
	}
}

// duringRelease is the release that a request belongs to: the last that began,
// if the request ended while it ran, in one of the two generations it is about.
// 0 is none. s.mu is held.
func (s *Supervisor) duringRelease(q *RequestSpan) uint64 {
	r := s.traced
	if r == nil || (r.candidate == nil || r.candidate.id != q.Generation) && (r.previous == nil || r.previous.id != q.Generation) {
		return 0
	}
	end := q.Began.Add(q.Duration)
	if end.Before(r.queued) || !r.ended.IsZero() && end.After(r.ended) {
		return 0
	}
	return r.result.ID
}

// noteExample keeps what the stages of the release may link to. s.mu is held.
func (s *Supervisor) noteExample(q *RequestSpan) {
	if q.Flags&(ledger.Erred|ledger.Slow|ledger.Anomalous) == 0 || len(s.examples[q.Generation]) >= mostExamples {
		return
	}
	s.examples[q.Generation] = append(s.examples[q.Generation], oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
		TraceID: q.TraceID, SpanID: q.SpanID, TraceFlags: oteltrace.FlagsSampled, Remote: true,
	}))
}

// examplesOf are the notable requests of a candidate so far.
func (s *Supervisor) examplesOf(generation uint64) []oteltrace.SpanContext {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.examples[generation]
}

// requestSpan is one request by the semantic conventions for HTTP and network.
func requestSpan(r *RequestSpan, release uint64) *tracepb.Span {
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
