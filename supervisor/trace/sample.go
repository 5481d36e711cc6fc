package trace

import (
	"sync"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/proxy/ledger"
)

const (
	// slowSpan is how long a span of a foreign generation takes to be kept for it.
	slowSpan = time.Second
	// mostRemembered bounds the traces known to be kept.
	mostRemembered = 4096

	hasRemote = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
	isRemote  = uint32(tracepb.SpanFlags_SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)
)

// Sampler chooses which spans of foreign generations are kept: whole traces, as
// far as they are known, that have an error, a slow span, or a parent in another
// process (its caller samples it); and one in a hundred of the others. What
// proxies of ours keep is chosen by the same rules, where the request ends.
type Sampler struct {
	mu     sync.Mutex
	kept   map[[16]byte]struct{}
	oldest [][16]byte
}

// Choose takes the spans out that are not kept, and says how many were and how
// many are gone.
func (s *Sampler) Choose(spans []*tracepb.ResourceSpans) (kept, gone int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	each(spans, func(span *tracepb.Span) bool {
		if notable(span) {
			s.remember([16]byte(span.TraceId))
		}
		return true
	})
	each(spans, func(span *tracepb.Span) bool {
		id := [16]byte(span.TraceId)
		_, known := s.kept[id]
		if !known && !ledger.Drawn(id) {
			gone++
			return false
		}
		kept++
		return true
	})
	return kept, gone
}

// notable reports whether a span is a reason to keep its trace.
func notable(s *tracepb.Span) bool {
	return s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR ||
		s.EndTimeUnixNano > s.StartTimeUnixNano && s.EndTimeUnixNano-s.StartTimeUnixNano >= uint64(slowSpan) ||
		s.Flags&hasRemote != 0 && s.Flags&isRemote != 0 && len(s.ParentSpanId) > 0
}

func (s *Sampler) remember(id [16]byte) {
	if s.kept == nil {
		s.kept = map[[16]byte]struct{}{}
	}
	if _, known := s.kept[id]; known {
		return
	}
	if len(s.oldest) == mostRemembered {
		delete(s.kept, s.oldest[0])
		s.oldest = s.oldest[1:]
	}
	s.kept[id] = struct{}{}
	s.oldest = append(s.oldest, id)
}

// each calls f with every span and takes those out for which it is false.
func each(all []*tracepb.ResourceSpans, f func(*tracepb.Span) bool) {
	for _, rs := range all {
		for _, scope := range rs.GetScopeSpans() {
			left := scope.Spans[:0]
			for _, s := range scope.Spans {
				if f(s) {
					left = append(left, s)
				}
			}
			clear(scope.Spans[len(left):])
			scope.Spans = left
		}
	}
}
