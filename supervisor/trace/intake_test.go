package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

func listen(t *testing.T, a *Intakes, generation int64) (*Intake, chan *tracepb.ResourceSpans) {
	t.Helper()
	got := make(chan *tracepb.ResourceSpans, 100)
	in, err := a.Listen([]*commonpb.KeyValue{IntValue(string(Generation), generation)}, func(rs *tracepb.ResourceSpans) { got <- rs })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.Close)
	return in, got
}

// span is one that nothing but chance would keep, and chance does not.
func span() *tracepb.Span {
	trace, id := newTraceID(), newSpanID()
	binary.BigEndian.PutUint64(trace[8:], 1)
	return &tracepb.Span{TraceId: trace[:], SpanId: id[:], Name: "x", StartTimeUnixNano: 1000, EndTimeUnixNano: 2000}
}

func of(all ...*tracepb.Span) []*tracepb.ResourceSpans {
	return []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: all}}}}
}

// What comes in by a generation's endpoint is that generation's, whatever it says
// itself. The sender is the exporter that servers in Go use.
func TestForeignSpansAreTagged(t *testing.T) {
	a := new(Intakes)
	for _, compression := range []otlptracehttp.Compression{otlptracehttp.NoCompression, otlptracehttp.GzipCompression} {
		in, got := listen(t, a, 7)
		client := otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(in.Endpoint()+"/v1/traces"), otlptracehttp.WithCompression(compression))
		exporter, err := otlptrace.New(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		lie := of(span())
		lie[0].ScopeSpans[0].Spans[0].Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
		lie[0].Resource = &resourcepb.Resource{Attributes: []*commonpb.KeyValue{IntValue(string(Generation), 8), TextValue("service.name", "shop")}}
		if err := client.UploadTraces(t.Context(), lie); err != nil {
			t.Fatal(err)
		}
		rs := <-got
		if n := len(rs.Resource.Attributes); n != 2 || Int(rs.Resource.Attributes, string(Generation)) != 7 || Text(rs.Resource.Attributes, "service.name") != "shop" {
			t.Errorf("resource: %v", rs.Resource)
		}
		exporter.Shutdown(context.Background())
	}
	if c := a.Counts(); c != (IntakeCounts{Kept: 2}) {
		t.Errorf("%+v", c)
	}
}

func TestSampling(t *testing.T) {
	var s Sampler
	ordinary, failed, slow, called, lucky := span(), span(), span(), span(), span()
	failed.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	slow.EndTimeUnixNano = slow.StartTimeUnixNano + uint64(slowSpan)
	called.Flags, called.ParentSpanId = hasRemote|isRemote, []byte("12345678")
	binary.BigEndian.PutUint64(lucky.TraceId[8:], 1<<56-1)
	sibling := span()
	sibling.TraceId = failed.TraceId

	all := of(ordinary, sibling, failed, slow, called, lucky)
	kept, gone := s.Choose(all)
	if kept != 5 || gone != 1 || count(all[0]) != 5 {
		t.Errorf("%d kept, %d gone, %v", kept, gone, all)
	}
	later := span()
	later.TraceId = failed.TraceId
	if kept, _ := s.Choose(of(later)); kept != 1 {
		t.Error("a later span of a kept trace was left out")
	}
	for range 2 * mostRemembered {
		bad := span()
		bad.Status = failed.Status
		s.Choose(of(bad))
	}
	if len(s.kept) != mostRemembered || len(s.oldest) != mostRemembered {
		t.Errorf("%d and %d traces are remembered", len(s.kept), len(s.oldest))
	}
}

// What is not an export is refused with the right status, and counted.
func TestIntakeRefuses(t *testing.T) {
	a := new(Intakes)
	in, got := listen(t, a, 1)
	many := of()
	for range mostSpans + 1 {
		many[0].ScopeSpans[0].Spans = append(many[0].ScopeSpans[0].Spans, &tracepb.Span{})
	}
	pack := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Write(b)
		z.Close()
		return out.Bytes()
	}
	const protobuf = "application/x-protobuf"
	tooMany, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: many})
	if err != nil {
		t.Fatal(err)
	}
	refused := uint64(0)
	for name, c := range map[string]struct {
		kind, encoding string
		body           []byte
		want           int
	}{
		"JSON":           {"application/json", "", []byte("{}"), 415},
		"no type":        {"", "", nil, 415},
		"zstd":           {protobuf, "zstd", nil, 415},
		"garbage":        {protobuf, "", []byte("garbage"), 400},
		"not gzip":       {protobuf, "gzip", []byte("garbage"), 400},
		"too large":      {protobuf, "", make([]byte, mostBody+1), 413},
		"a gzip bomb":    {protobuf, "gzip", pack(make([]byte, 16<<20)), 400},
		"too many spans": {protobuf, "", tooMany, 400},
		"too many parts": {protobuf, "", bytes.Repeat([]byte{0x0a, 0}, mostMessages+1), 400},
	} {
		req, err := http.NewRequest(http.MethodPost, in.Endpoint()+"/v1/traces", bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", c.kind)
		if c.encoding != "" {
			req.Header.Set("Content-Encoding", c.encoding)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		said, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if refused++; resp.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, said, c.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if c := a.Counts(); c.Refused != refused || len(got) != 0 {
		t.Errorf("%+v, want %d refused", c, refused)
	}
	if _, err := http.Post(in.Endpoint()+"/v1/metrics", protobuf, strings.NewReader("")); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func FuzzDecode(f *testing.F) {
	good, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: of(span(), span())})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte{0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		in := &Intake{all: new(Intakes), tag: []*commonpb.KeyValue{IntValue("a", 1)}, to: func(rs *tracepb.ResourceSpans) {
			if _, err := JSON(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{rs}}); err != nil && !strings.Contains(err.Error(), "UTF-8") {
				t.Error(err)
			}
			Draw(io.Discard, &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{rs}}, "")
		}}
		if spans, err := decode(b); err == nil {
			in.take(spans)
		}
	})
}

// OTLP/JSON has IDs in hexadecimal, and comes back as it was.
func TestJSON(t *testing.T) {
	s := span()
	s.ParentSpanId = []byte{1, 2, 3, 4, 5, 6, 7, 8}
	s.Links = []*tracepb.Span_Link{{TraceId: s.TraceId, SpanId: s.ParentSpanId}}
	s.Attributes = []*commonpb.KeyValue{TextValue("traceId", "left as it is"), IntValue("n", 1<<62)}
	s.Kind = tracepb.Span_SPAN_KIND_SERVER
	was := &tracepb.TracesData{ResourceSpans: of(s)}
	text, err := JSON(was)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"parentSpanId":"0102030405060708"`, `"kind":2`, `"startTimeUnixNano":"1000"`, `left as it is`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	again, err := ParseJSON(text)
	if err != nil || !proto.Equal(was, again) {
		t.Errorf("%v, %v", again, err)
	}
}
