package trace

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// spans is a piece of work for a pipeline.
func spans(n int) *tracepb.ResourceSpans {
	scope := &tracepb.ScopeSpans{}
	for range n {
		id, trace := newSpanID(), newTraceID()
		scope.Spans = append(scope.Spans, &tracepb.Span{TraceId: trace[:], SpanId: id[:], Name: "x", StartTimeUnixNano: 1, EndTimeUnixNano: 2})
	}
	return &tracepb.ResourceSpans{ScopeSpans: []*tracepb.ScopeSpans{scope}}
}

// kept is a keeper in memory.
type kept struct {
	mu    sync.Mutex
	spans int
}

func (k *kept) PutSpans(rs *tracepb.ResourceSpans) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans += count(rs)
}

func (k *kept) SaveOpen(*tracepb.TracesData) error { return nil }

// A collector that fails in whatever way costs spans, counted, and nothing
// else: who hands them over never waits, the store has them, and the end comes
// within its bound.
func TestCollectorThatFails(t *testing.T) {
	serve := func(h func(http.ResponseWriter, *http.Request, chan struct{})) func(*testing.T) string {
		return func(t *testing.T) string {
			stuck := make(chan struct{})
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, stuck) }))
			t.Cleanup(func() { close(stuck); s.CloseClientConnections(); s.Close() })
			return s.URL
		}
	}
	listen := func(each func(net.Conn)) func(*testing.T) string {
		return func(t *testing.T) string {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go each(c)
				}
			}()
			return "http://" + l.Addr().String()
		}
	}
	for name, start := range map[string]func(*testing.T) string{
		"down":          func(*testing.T) string { return "http://127.0.0.1:1" },
		"never answers": serve(func(_ http.ResponseWriter, _ *http.Request, stuck chan struct{}) { <-stuck }),
		"refuses": serve(func(w http.ResponseWriter, _ *http.Request, _ chan struct{}) {
			http.Error(w, "no", http.StatusBadRequest)
		}),
		"is overloaded": serve(func(w http.ResponseWriter, _ *http.Request, _ chan struct{}) {
			http.Error(w, "", http.StatusServiceUnavailable)
		}),
		"answers garbage": listen(func(c net.Conn) { io.WriteString(c, strings.Repeat("\xff\x00garbage", 100)); c.Close() }),
		"hangs up":        listen(func(c net.Conn) { c.Close() }),
		"never ends its answer": serve(func(w http.ResponseWriter, r *http.Request, stuck chan struct{}) {
			io.Copy(io.Discard, r.Body)
			for {
				select {
				case <-stuck:
					return
				default:
				}
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}),
	} {
		for _, protocol := range []string{"http/protobuf", "grpc"} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", start(t))
				t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
				p := open(t)
				k := new(kept)
				p.KeepIn(k)
				const pieces, each = 200, 100 // more than the queue holds
				for range pieces {
					p.Add(spans(each))
				}
				ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
				defer cancel()
				p.Close(ctx)
				c := p.Counts()
				if sum := c.Exported + c.Failed + c.Dropped; sum != pieces*each {
					t.Errorf("%+v are %d spans, want %d", c, sum, pieces*each)
				}
				if name != "never ends its answer" && c.Exported > 0 {
					t.Errorf("%+v: exported to nobody", c)
				}
				if k.spans != pieces*each {
					t.Errorf("%d spans stored, want %d", k.spans, pieces*each)
				}
			})
		}
	}
}

// Spans get to a collector of either protocol, each once, also in the last moment.
func TestCollectorThatWorks(t *testing.T) {
	for _, protocol := range []string{"http/protobuf", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			got := new(service)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", got.start(t, protocol))
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
			p := open(t)
			for range 70 {
				p.Add(spans(100))
			}
			p.Close(t.Context())
			if c := p.Counts(); c != (Counts{Exported: 7000}) {
				t.Errorf("%+v", c)
			}
			if len(got.seen) != 7000 {
				t.Errorf("the collector has %d spans", len(got.seen))
			}
		})
	}
}

// service is a collector.
type service struct {
	collector.UnimplementedTraceServiceServer
	mu   sync.Mutex
	seen map[string]bool
}

func (s *service) start(t *testing.T, protocol string) string {
	s.seen = map[string]bool{}
	if protocol != "grpc" {
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		return server.URL
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return "http://" + l.Addr().String()
}

func (s *service) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each(r.ResourceSpans, func(span *tracepb.Span) bool {
		s.seen[string(span.SpanId)] = true
		return true
	})
	return new(collector.ExportTraceServiceResponse), nil
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	req := new(collector.ExportTraceServiceRequest)
	if err == nil {
		err = proto.Unmarshal(body, req)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.Export(r.Context(), req)
}
