package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/supervisor/store"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// flushTimeout bounds how long the last spans may hold up the end.
const flushTimeout = 2 * time.Second

// openHistory makes the way of the spans and reads what earlier supervisors have
// stored. Nothing that is damaged or missing there keeps this one from starting.
func (s *Supervisor) openHistory() (err error) {
	s.traces, err = trace.Open(context.Background(), trace.Options{Version: s.opts.Version, Node: s.config.Node.Name, Log: s.log})
	if err != nil {
		return err
	}
	s.tracer = s.traces.Tracer()
	c := s.config.Traces
	dir := c.Dir
	if dir == "" {
		dir = filepath.Join(s.config.RuntimeDir, "traces")
	}
	kept, err := store.Open(dir, store.Limits{Releases: c.MaxReleases, Bytes: int64(c.MaxBytes), Age: c.MaxAge}, s.log)
	if err != nil {
		s.log.Error("releases and spans are not stored", "directory", dir, "error", err)
		return nil
	}
	s.store = kept
	for _, data := range kept.Releases() {
		var r Result
		if err := json.Unmarshal(data, &r); err != nil {
			s.log.Warn("a stored release cannot be read", "error", err)
			continue
		}
		if r.Outcome == "" {
			r.Outcome, r.ExitCode, r.Reason = Failed, Failed.ExitCode(), "the supervisor ended before the release did"
			s.record(r)
		}
		s.history = append(s.history, r)
	}
	s.traces.KeepIn(kept)
	s.goOn(kept.Unfinished())
	var watching context.Context
	watching, s.stopWatch = context.WithCancel(context.Background())
	s.watched.Go(func() { s.traces.Watch(watching, kept) })
	return nil
}

// goOn ends the spans that the last supervisor could not end, but for the drains
// that still go on: they end when those do.
func (s *Supervisor) goOn(left *tracepb.TracesData) {
	s.resumed, s.cutOff = map[uint64]oteltrace.Span{}, map[uint64]oteltrace.SpanContext{}
	for _, rs := range left.ResourceSpans {
		for _, scope := range rs.ScopeSpans {
			for _, was := range scope.Spans {
				span := s.traces.Resume(was)
				id := uint64(trace.Int(was.Attributes, string(trace.Generation)))
				if was.Name == "drain" && slices.ContainsFunc(s.generations, func(g *generation) bool { return g.id == id }) {
					span.AddEvent(trace.EventResumed)
					s.resumed[id] = span
					s.endsIn(id, was)
					continue
				}
				if release := trace.Int(was.Attributes, string(trace.ReleaseID)); was.Name == "release" {
					s.cutOff[uint64(release)] = span.SpanContext()
				}
				span.SetAttributes(trace.Interrupted.Bool(true))
				span.SetStatus(codes.Error, "the supervisor ended while this went on")
				span.End()
			}
		}
	}
}

// endsIn makes the reap of a generation that is draining part of the same trace.
func (s *Supervisor) endsIn(id uint64, drain *tracepb.Span) {
	for _, g := range s.generations {
		if g.id == id {
			g.endsIn = trace.Parent(drain)
		}
	}
}

// closeHistory stores and exports what is left. A span that has not ended stays
// with the store, for the next supervisor.
func (s *Supervisor) closeHistory() {
	if s.traces == nil {
		return
	}
	if s.stopWatch != nil {
		s.stopWatch()
		s.watched.Wait()
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	s.traces.Close(ctx)
	s.store.Close()
}

// record stores what is known of a release. It does not wait.
func (s *Supervisor) record(r Result) {
	if data, err := json.Marshal(r); err == nil {
		s.store.PutRelease(r.ID, data)
	}
}

// historyOf is what is known of a release; nil: nothing. s.mu is held.
func (s *Supervisor) historyOf(id uint64) *Result {
	if i := slices.IndexFunc(s.history, func(r Result) bool { return r.ID == id }); i >= 0 {
		return &s.history[i]
	}
	return nil
}

// remember makes a release that has ended part of the history. s.mu is held.
func (s *Supervisor) remember(r Result) {
	s.record(r)
	if known := s.historyOf(r.ID); known != nil {
		*known = r
		return
	}
	s.history = append(s.history, r)
	if n := len(s.history) - s.config.Traces.MaxReleases; n > 0 {
		s.history = slices.Delete(s.history, 0, n)
	}
}

// Trace is every stored span that has to do with a release: those of its trace,
// and those of requests that were served while it ran by the generations it is
// about. The second are at most a thousand, the latest.
func (s *Supervisor) Trace(id uint64) (*tracepb.TracesData, error) {
	s.mu.Lock()
	traceID, found := "", false
	if r := s.running; r != nil && r.result.ID == id {
		traceID, found = r.traceID(), true
	} else if known := s.historyOf(id); known != nil {
		traceID, found = known.TraceID, true
	}
	s.mu.Unlock()
	if !found {
		return nil, fmt.Errorf("release %d is not among those kept", id)
	}
	want, err := oteltrace.TraceIDFromHex(traceID)
	if err != nil {
		return nil, fmt.Errorf("release %d has no trace", id)
	}
	s.store.Flush()
	return gather(s.store, want, int64(id)), nil
}
