package supervisor

import (
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// mostExamples bounds the requests that a stage links to: the errors first.
const mostExamples = 32

// keepSpans takes what a generation has kept.
func (s *Supervisor) keepSpans(spans []account.RequestSpan) {
	s.exemplars.Keep(spans)
	s.requestSpans(spans)
	if s.opts.RequestSpans != nil {
		s.opts.RequestSpans(spans)
	}
}

// requestSpans makes spans of what a generation's ledger has kept: requests that
// failed, were slow, anomalous, probes, sampled by their caller, or one in a
// hundred.
func (s *Supervisor) requestSpans(all []account.RequestSpan) {
	id := all[0].Generation
	spans := make([]*tracepb.Span, len(all))
	s.mu.Lock()
	for i := range all {
		release := s.duringRelease(&all[i])
		if release != 0 {
			s.noteExample(&all[i])
		}
		spans[i] = all[i].Span(release)
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
func (s *Supervisor) duringRelease(q *account.RequestSpan) uint64 {
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
func (s *Supervisor) noteExample(q *account.RequestSpan) {
	if q.Notable() && len(s.examples[q.Generation]) < mostExamples {
		s.examples[q.Generation] = append(s.examples[q.Generation], q.Context())
	}
}

// examplesOf are the notable requests of a candidate so far.
func (s *Supervisor) examplesOf(generation uint64) []oteltrace.SpanContext {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.examples[generation]
}
