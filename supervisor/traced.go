package supervisor

import (
	"context"
	"fmt"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/baton-mesh/baton/supervisor/trace"
)

// A release is one trace. Its root ends with the verdict; the drain and the reap
// of the generation that was replaced are children of it that end later.

// startTrace begins the trace of a release.
func (s *Supervisor) startTrace(ctx context.Context, r *release) (context.Context, oteltrace.Span) {
	ctx, span := s.tracer.Start(ctx, "release", oteltrace.WithNewRoot(), oteltrace.WithTimestamp(r.queued), oteltrace.WithAttributes(
		trace.ReleaseID.Int64(int64(r.result.ID)),
		trace.ReleaseCause.String(r.cause),
		trace.GenerationFrom.Int64(int64(r.result.Previous)),
		trace.ServerID.Int64(int64(s.config.Node.ServerID)),
		attribute.String("deployment.id", fmt.Sprint(r.result.ID)),
		attribute.String("deployment.name", s.config.Node.Name),
	))
	s.mu.Lock()
	r.root, r.span = span, span
	s.traced, s.examples = r, map[uint64][]oteltrace.SpanContext{}
	if span.SpanContext().IsValid() {
		r.result.TraceID = span.SpanContext().TraceID().String()
	}
	s.record(r.result)
	s.mu.Unlock()
	return ctx, span
}

// traceID is the release's, or empty. s.mu is held.
func (r *release) traceID() string { return r.result.TraceID }

// endTrace says how the release ended. The root ends with it.
func (s *Supervisor) endTrace(r *release, o Outcome, reason string) {
	status := "failed"
	if o == Passed || o == Inconclusive {
		status = "succeeded" // the candidate serves
	}
	if v := r.result.Verdict; v != nil {
		r.root.SetAttributes(trace.Verdict.String(string(v.Judgement)), trace.Harmed.Int64(int64(v.Harmed)))
	}
	r.root.SetAttributes(
		trace.ReleaseOutcome.String(string(o)),
		trace.Evidence.StringSlice(r.result.Evidence),
		trace.GenerationTo.Int64(int64(r.result.Generation)),
		trace.QueuedHalfOpen.Int(r.result.QueuedAtShift.HalfOpen),
		trace.QueuedToAccept.Int(r.result.QueuedAtShift.ToAccept),
		attribute.String("deployment.status", status),
	)
	if o != Passed {
		r.root.SetStatus(codes.Error, reason)
	}
	if r.recipe != nil {
		ramp := make([]string, 0, len(r.ramp()))
		for _, share := range r.ramp() {
			ramp = append(ramp, share.String())
		}
		r.root.SetAttributes(
			trace.ReleaseRamp.String(strings.Join(ramp, ",")),
			trace.ConfigPath.String(r.recipe.configPath),
			attribute.String("process.executable.path", r.recipe.binary.Path),
		)
	}
}

// startSpan begins the span of a stage, or of an undo.
func (s *Supervisor) startSpan(ctx context.Context, r *release, name string) (context.Context, oteltrace.Span) {
	ctx, span := s.tracer.Start(ctx, name)
	s.mu.Lock()
	r.span = span
	s.mu.Unlock()
	return ctx, span
}

// endSpan says how a stage ended, with the evidence it has added from the
// index on.
func (s *Supervisor) endSpan(r *release, span oteltrace.Span, name string, evidence int, err error) {
	for _, words := range r.result.Evidence[evidence:] {
		span.AddEvent(trace.EventDecision, oteltrace.WithAttributes(trace.Evidence.String(words)))
	}
	if v := r.result.Verdict; v != nil && !r.judged {
		r.judged = true
		for _, f := range v.Findings {
			span.AddEvent(trace.EventGate, oteltrace.WithAttributes(
				trace.Gate.String(f.Gate), trace.GateState.String(string(f.State)), trace.Evidence.String(f.Words)))
		}
	}
	if g := r.candidate; g != nil {
		span.SetAttributes(trace.Generation.Int64(int64(g.id)))
		if name == "start" {
			span.SetAttributes(trace.Slot.Int(int(g.slot)),
				attribute.Int("process.pid", g.process.PID),
				attribute.String("process.executable.path", r.recipe.binary.Path))
		}
		if name == "verify" || err != nil {
			for _, example := range s.examplesOf(g.id) {
				span.AddLink(oteltrace.Link{SpanContext: example})
			}
		}
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	s.mu.Lock()
	r.span = r.root
	s.mu.Unlock()
	span.End()
}

// event notes something on the stage that runs. For the release loop, or with
// s.mu held.
func (r *release) event(name string, attributes ...attribute.KeyValue) {
	if r.span != nil {
		r.span.AddEvent(name, oteltrace.WithAttributes(attributes...))
	}
}

// traceEnd makes the end of a generation part of the trace of the release that
// replaced it. s.mu is held.
func (g *generation) traceEnd(r *release) {
	if r.root != nil && !g.endsIn.IsValid() {
		g.endsIn = r.root.SpanContext()
	}
}

// tracedEnd is the end of a generation as part of a trace: the drain, then the reap.
// A nil one records nothing: the generation ends with the supervisor, in no
// release's trace, or another goroutine ends it already.
type tracedEnd struct {
	s    *Supervisor
	g    *generation
	in   oteltrace.SpanContext
	span oteltrace.Span // of the phase that runs; nil: none
}

// traceEnding is for the first who ends a generation.
func (s *Supervisor) traceEnding(g *generation) *tracedEnd {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !g.endsIn.IsValid() || g.endTraced {
		return nil
	}
	g.endTraced = true
	return &tracedEnd{s: s, g: g, in: g.endsIn}
}

// begin begins a phase. A drain that an earlier supervisor began goes on under
// the same IDs.
func (e *tracedEnd) begin(phase string, attributes ...attribute.KeyValue) {
	if e == nil {
		return
	}
	if phase == "drain" {
		e.s.mu.Lock()
		e.span = e.s.resumed[e.g.id]
		delete(e.s.resumed, e.g.id)
		e.s.mu.Unlock()
		if e.span != nil {
			return
		}
	}
	ctx := oteltrace.ContextWithSpanContext(context.Background(), e.in)
	_, e.span = e.s.tracer.Start(ctx, phase, oteltrace.WithAttributes(append(attributes, trace.Generation.Int64(int64(e.g.id)))...))
}

// note adds an event to the phase that runs.
func (e *tracedEnd) note(name string) {
	if e != nil {
		e.span.AddEvent(name)
	}
}

// end ends the phase with what the generation has left.
func (e *tracedEnd) end(phase string) {
	if e == nil {
		return
	}
	e.s.mu.Lock()
	cut, idle, halfOpen, exit, ended := e.g.cut, e.g.idleClosed, e.g.halfOpenLeft, e.g.exit, e.g.ended
	e.s.mu.Unlock()
	if phase == "drain" {
		e.span.SetAttributes(trace.DrainCut.Int(cut), trace.DrainIdleClosed.Int(idle), trace.DrainHalfOpenLeft.Int(halfOpen))
	}
	if exit != "" {
		e.span.SetAttributes(trace.Exit.String(exit))
	}
	if ended != nil {
		e.span.SetAttributes(trace.ExitUndeclared.Int64(int64(ended.Undeclared)), trace.ExitInFlight.Int64(int64(ended.InFlight)))
	}
	e.span.End()
}
