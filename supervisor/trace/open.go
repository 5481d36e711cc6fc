package trace

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// openEvery is how often the spans that have not ended are looked at for what
// has been added to them. Their begin and end is stored at once.
const openEvery = time.Second

// changed says that a span has begun or ended.
func (p *Pipeline) changed() {
	select {
	case p.liveChanged <- struct{}{}:
	default:
	}
}

// Watch stores the spans that have not ended, until ctx ends, so that the next
// supervisor can end them if this one dies. When Watch returns the keeper has
// the last word.
func (p *Pipeline) Watch(ctx context.Context, k Keeper) {
	tick := time.NewTicker(openEvery)
	defer tick.Stop()
	var before []byte
	save := func() {
		open := p.open()
		now, err := proto.MarshalOptions{Deterministic: true}.Marshal(open)
		if err == nil && !bytes.Equal(now, before) {
			err = k.SaveOpen(open)
		}
		if err != nil {
			p.log.Debug("store the spans that have not ended", "error", err)
			return
		}
		before = now
	}
	for {
		select {
		case <-p.liveChanged:
		case <-tick.C:
		case <-ctx.Done():
			save()
			return
		}
		save()
	}
}

// open is what would be exported of the spans that have not ended, without an end.
func (p *Pipeline) open() *tracepb.TracesData {
	p.mu.Lock()
	spans := make([]sdk.ReadOnlySpan, 0, len(p.live))
	for _, s := range p.live {
		spans = append(spans, s)
	}
	p.mu.Unlock()
	slices.SortFunc(spans, func(a, b sdk.ReadOnlySpan) int {
		x, y := a.SpanContext().SpanID(), b.SpanContext().SpanID()
		return cmp.Or(a.StartTime().Compare(b.StartTime()), bytes.Compare(x[:], y[:]))
	})
	all := new(tracepb.TracesData)
	otlptrace.NewUnstarted(collect{all}).ExportSpans(context.Background(), spans)
	for _, rs := range all.ResourceSpans {
		for _, scope := range rs.ScopeSpans {
			for _, s := range scope.Spans {
				s.EndTimeUnixNano = 0
			}
		}
	}
	return all
}

// collect is an exporter's end that keeps what it is given.
type collect struct{ to *tracepb.TracesData }

func (collect) Start(context.Context) error { return nil }
func (collect) Stop(context.Context) error  { return nil }
func (c collect) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	c.to.ResourceSpans = append(c.to.ResourceSpans, spans...)
	return nil
}

// Resume goes on with a span that another process began: the same IDs, the same
// start, and what was known of it. It must be ended as any other.
func (p *Pipeline) Resume(was *tracepb.Span) trace.Span {
	parent := Parent(was)
	id := resumed{trace: parent.TraceID()}
	copy(id.span[:], was.SpanId)
	ctx := context.WithValue(context.Background(), resumed{}, id)
	if parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	}
	_, span := p.Tracer().Start(ctx, was.Name, trace.WithTimestamp(at(was.StartTimeUnixNano)),
		trace.WithAttributes(attributesOf(was.Attributes)...), trace.WithSpanKind(trace.SpanKind(was.Kind)))
	for _, e := range was.Events {
		span.AddEvent(e.Name, trace.WithTimestamp(at(e.TimeUnixNano)), trace.WithAttributes(attributesOf(e.Attributes)...))
	}
	return span
}

// Parent is the span that a span is a child of; one without a parent has one
// that is not valid, in the same trace.
func Parent(of *tracepb.Span) trace.SpanContext {
	parent := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled, Remote: true}
	copy(parent.TraceID[:], of.TraceId)
	copy(parent.SpanID[:], of.ParentSpanId)
	return trace.NewSpanContext(parent)
}

func at(ns uint64) time.Time { return time.Unix(0, int64(ns)) }

// resumed is the key and the value of a context in which a span gets given IDs.
type resumed struct {
	trace trace.TraceID
	span  trace.SpanID
}

// ids makes random IDs, but for a span that is resumed.
type ids struct{}

func (ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if id, ok := ctx.Value(resumed{}).(resumed); ok {
		return id.trace, id.span
	}
	return newTraceID(), newSpanID()
}

func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if id, ok := ctx.Value(resumed{}).(resumed); ok {
		return id.span
	}
	return newSpanID()
}

// Text is the attribute's value as text; empty if it is not there, or is none.
func Text(attributes []*commonpb.KeyValue, key string) string {
	for _, a := range attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// Int is the attribute's value as a number; 0 if it is not there, or is none.
func Int(attributes []*commonpb.KeyValue, key string) int64 {
	for _, a := range attributes {
		if a.Key == key {
			return a.Value.GetIntValue()
		}
	}
	return 0
}
