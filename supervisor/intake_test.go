package supervisor

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// exportSpan is what a foreign generation does: it sends a span to where its
// environment says, and tells how that went.
func exportSpan(traceID string) string {
	id, _ := hex.DecodeString(traceID)
	body, _ := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{
		Spans: []*tracepb.Span{{TraceId: id, SpanId: []byte("foreign!"), Name: "foreign", Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}}},
	}}}}})
	resp, err := http.Post(os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")+"/v1/traces", "application/x-protobuf", bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	return resp.Status + " " + os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
}

// A server that is not ours is told where to send its spans; they are known by
// where they come in, and stored like all others.
func TestForeignServerIsTold(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	first := n.s.Results()[0]
	said, err := n.get("/export?trace=" + first.TraceID)
	if err != nil || said != "200 OK http/protobuf" {
		t.Fatalf("%q, %v", said, err)
	}
	spans, err := n.s.Trace(first.ID)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(spans.ResourceSpans, func(rs *tracepb.ResourceSpans) bool { return rs.ScopeSpans[0].Spans[0].Name == "foreign" })
	if i < 0 {
		t.Fatalf("no foreign span in %v", spans)
	}
	tags := spans.ResourceSpans[i].Resource.Attributes
	if trace.Int(tags, string(trace.Generation)) != int64(first.Generation) || trace.Text(tags, "service.instance.id") != "test-1" {
		t.Errorf("resource: %v", tags)
	}
	if c := n.s.Status().Spans.Received; c.Kept != 1 || c.Refused != 0 {
		t.Errorf("%+v", c)
	}
}

// What the operator has set for metrics and logs stays in force.
func TestMetricsGoWhereTheyWent(t *testing.T) {
	for name, c := range map[string]struct{ given, want string }{
		"nothing":  {"A=b", "A=b OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none"},
		"own":      {"OTEL_LOGS_EXPORTER=console", "OTEL_LOGS_EXPORTER=console OTEL_METRICS_EXPORTER=none"},
		"grpc":     {"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4317 OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c:4317 OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://c:4317 OTEL_EXPORTER_OTLP_LOGS_PROTOCOL=grpc"},
		"http":     {"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318/ OTEL_EXPORTER_OTLP_HEADERS=a=b", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://c:4318/v1/metrics OTEL_EXPORTER_OTLP_METRICS_HEADERS=a=b OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://c:4318/v1/logs OTEL_EXPORTER_OTLP_LOGS_HEADERS=a=b"},
		"traces":   {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c", "OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none"},
		"metrics":  {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://m", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://m OTEL_LOGS_EXPORTER=none"},
		"sampling": {"OTEL_TRACES_SAMPLER=always_off", "OTEL_TRACES_SAMPLER=always_off OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none"},
	} {
		got := strings.Join(exportEnv(strings.Fields(c.given), "http://127.0.0.1:9"), " ")
		if want := c.want + " OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9 OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"; got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
}

// What a ledger has kept becomes spans by the semantic conventions; those of a
// release's generations while it ran are part of what belongs to it, and the
// candidate's that failed are linked to.
func TestRequestsHaveSpans(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	n.s.mu.Lock()
	during := n.s.traced.queued.Add(time.Millisecond)
	n.s.mu.Unlock()
	record := func(generation uint64, began time.Time, id byte) account.RequestSpan {
		return account.RequestSpan{Generation: generation, Began: began, Listener: "web", Route: "all", Record: ledger.Record{
			Key:     ledger.Key{Protocol: ledger.HTTP2, Class: ledger.Status5xx},
			TraceID: [16]byte{id}, SpanID: [8]byte{id}, ParentID: [8]byte{9}, Duration: time.Microsecond, Head: 1,
			Status: 502, Flags: ledger.Erred | ledger.Slow, Method: "GET", Host: "shop.example:443", Path: "/cart",
			Client: "192.0.2.1:40000", Upstream: "192.0.2.2:80", Error: "upstream-connect",
		}}
	}
	n.s.requestSpans([]account.RequestSpan{record(1, during, 1), record(1, during.Add(-time.Hour), 2), record(1, time.Now().Add(time.Hour), 3)})
	n.s.requestSpans([]account.RequestSpan{record(5, during, 4)})
	purge := record(1, during, 5)
	purge.Method, purge.Flags = "PURGE", ledger.Secure
	n.s.requestSpans([]account.RequestSpan{purge})

	var of []*tracepb.Span
	for _, s := range n.spansOf(1) {
		if s.Name == "GET" || s.Name == "HTTP" {
			of = append(of, s)
		}
	}
	if len(of) != 2 || of[0].TraceId[0] != 1 || of[1].TraceId[0] != 5 {
		t.Fatalf("requests of the release: %v", of)
	}
	s := of[0]
	attributes := func(s *tracepb.Span) map[string]string {
		got := map[string]string{}
		for _, a := range s.Attributes {
			if got[a.Key] = a.Value.GetStringValue(); got[a.Key] == "" {
				got[a.Key] = fmt.Sprint(a.Value.GetIntValue())
			}
		}
		return got
	}
	got := attributes(of[1])
	if got["http.request.method"] != "_OTHER" || got["http.request.method_original"] != "PURGE" || got["url.scheme"] != "https" {
		t.Errorf("a method that the conventions do not know, by TLS: %v", got)
	}
	got = attributes(s)
	for key, want := range map[string]string{
		"url.scheme": "http", "network.peer.address": "192.0.2.1", "network.peer.port": "40000",
		"http.request.method": "GET", "url.path": "/cart", "server.address": "shop.example", "server.port": "443",
		"client.address": "192.0.2.1", "client.port": "40000", "http.response.status_code": "502", "error.type": "upstream-connect",
		"network.protocol.name": "http", "network.protocol.version": "2", "network.transport": "tcp",
		"baton.kept": "error,slow", "baton.route": "all", "baton.listener": "web", "baton.generation": "1", "baton.release.id": "1",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if s.Kind != tracepb.Span_SPAN_KIND_SERVER || s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR || s.ParentSpanId[0] != 9 ||
		s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(time.Microsecond) {
		t.Errorf("%v", s)
	}
	if links := n.s.examplesOf(1); len(links) != 1 || links[0].TraceID()[0] != 1 {
		t.Errorf("examples: %v", links)
	}
}
