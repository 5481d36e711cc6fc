package supervisor

import (
	oteltrace "go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/supervisor/store"
	"github.com/baton-mesh/baton/supervisor/trace"
)

const (
	// mostShown bounds the spans of a release's own trace, mostRequests those of
	// requests that are shown beside it.
	mostShown    = 10_000
	mostRequests = 1000
)

// gather collects the spans of a trace, and those that name the release.
func gather(from *store.Store, want oteltrace.TraceID, release int64) *tracepb.TracesData {
	all := new(tracepb.TracesData)
	var requests []*tracepb.ResourceSpans
	seen := map[string]bool{}
	from.ReadSpans(func(rs *tracepb.ResourceSpans) bool {
		for _, scope := range rs.ScopeSpans {
			for _, span := range scope.Spans {
				key := string(span.TraceId) + string(span.SpanId)
				own := string(span.TraceId) == string(want[:])
				if seen[key] || !own && trace.Int(span.Attributes, string(trace.ReleaseID)) != release {
					continue
				}
				seen[key] = true // a span that ended as its supervisor died may be there twice
				one := &tracepb.ResourceSpans{Resource: rs.Resource, SchemaUrl: rs.SchemaUrl, ScopeSpans: []*tracepb.ScopeSpans{
					{Scope: scope.Scope, SchemaUrl: scope.SchemaUrl, Spans: []*tracepb.Span{span}},
				}}
				if own {
					all.ResourceSpans = append(all.ResourceSpans, one)
					continue
				}
				requests = append(requests, one)
				if len(requests) > 2*mostRequests {
					requests = append(requests[:0], requests[mostRequests:]...)
				}
			}
		}
		return len(all.ResourceSpans) < mostShown
	})
	all.ResourceSpans = append(all.ResourceSpans, requests[max(0, len(requests)-mostRequests):]...)
	return all
}
