package trace

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// mostQueued and mostQueuedBytes bound what waits for the collector.
	mostQueued      = 8192 // spans
	mostQueuedBytes = 16 << 20
	// batch bounds the spans of one upload.
	batch = 512
	// gather is how long spans are collected before an upload.
	gather = 200 * time.Millisecond
	// complainEvery bounds the warnings about a collector that fails.
	complainEvery = time.Minute
)

// Keeper stores what passes through a pipeline. Its methods never wait.
type Keeper interface {
	// PutSpans stores spans that have ended.
	PutSpans(*tracepb.ResourceSpans)
	// SaveOpen replaces what is stored of those that have not.
	SaveOpen(*tracepb.TracesData) error
}

// Pipeline carries spans to the store and to the collector. Make it with [Open].
type Pipeline struct {
	log      *slog.Logger
	client   otlptrace.Client // nil: nobody asked for an export
	provider *sdk.TracerProvider
	into     *otlptrace.Exporter
	abort    context.CancelFunc // ends an upload
	wake     chan struct{}      // one token: there is something to upload
	closing  chan struct{}      // closed when the queue is to be emptied and no more
	ended    chan struct{}      // closed when nothing is uploaded any more
	once     sync.Once

	liveChanged chan struct{} // one token: a span has begun or ended

	exported, failed, dropped atomic.Uint64

	mu          sync.Mutex
	keeper      Keeper
	queue       []*tracepb.ResourceSpans
	queued      int // spans in queue
	queuedBytes int
	live        map[trace.SpanID]sdk.ReadWriteSpan
}

// Counts says what became of spans on their way to the collector.
type Counts struct {
	Exported uint64 `json:"exported"`
	Failed   uint64 `json:"failed"`  // the collector did not take them
	Dropped  uint64 `json:"dropped"` // the queue was full, or the end came
}

// Counts are since [Open].
func (p *Pipeline) Counts() Counts {
	return Counts{p.exported.Load(), p.failed.Load(), p.dropped.Load()}
}

// Exports reports whether there is a collector to export to.
func (p *Pipeline) Exports() bool { return p.client != nil }

// Add takes spans. It never waits, and owns them from now on.
func (p *Pipeline) Add(spans *tracepb.ResourceSpans) {
	n, size := count(spans), proto.Size(spans)
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keeper != nil {
		p.keeper.PutSpans(spans)
	}
	if p.client == nil {
		return
	}
	if p.queued+n > mostQueued || p.queuedBytes+size > mostQueuedBytes {
		p.dropped.Add(uint64(n))
		return
	}
	p.queue = append(p.queue, spans)
	p.queued += n
	p.queuedBytes += size
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func count(rs *tracepb.ResourceSpans) (n int) {
	for _, scope := range rs.GetScopeSpans() {
		n += len(scope.GetSpans())
	}
	return n
}

// take is the next upload: nil if nothing is queued.
func (p *Pipeline) take() (spans []*tracepb.ResourceSpans, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && (n == 0 || n+count(p.queue[0]) <= batch) {
		first := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		n += count(first)
		p.queuedBytes -= proto.Size(first)
		spans = append(spans, first)
	}
	p.queued -= n
	return spans, n
}

// export uploads what is queued until the pipeline closes; ctx ends an upload.
func (p *Pipeline) export(ctx context.Context) {
	defer close(p.ended)
	var complained time.Time
	for closing := false; !closing; {
		select {
		case <-p.wake:
			select {
			case <-time.After(gather):
			case <-p.closing:
			}
		case <-p.closing:
			closing = true
		}
		for {
			spans, n := p.take()
			if n == 0 {
				break
			}
			if ctx.Err() != nil {
				p.dropped.Add(uint64(n))
				continue
			}
			err := p.client.UploadTraces(ctx, spans)
			if err == nil {
				p.exported.Add(uint64(n))
				continue
			}
			p.failed.Add(uint64(n))
			if time.Since(complained) > complainEvery {
				complained = time.Now()
				p.log.Warn("spans were not exported", "spans", n, "error", err)
			}
		}
	}
}

// Close uploads what is queued, until ctx ends, and ends everything the
// pipeline has started. The keeper is not used any more.
func (p *Pipeline) Close(ctx context.Context) {
	p.once.Do(func() { close(p.closing) })
	defer p.abort()
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.abort()
		<-p.ended
	}
	p.KeepIn(nil)
	if p.client != nil {
		if err := p.client.Stop(ctx); err != nil {
			p.log.Debug("OpenTelemetry exporter", "error", err)
		}
	}
}

// KeepIn says where spans are stored from now on; nil: nowhere. After KeepIn(nil)
// the keeper that was is not used any more.
func (p *Pipeline) KeepIn(k Keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeper = k
}
