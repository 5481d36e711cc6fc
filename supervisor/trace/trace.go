// Package trace carries the spans of a node: those of its releases, those that
// generations send, and those made of the ledgers' records. All of them go the
// same way, as OTLP: into the store, and by a bounded queue to the collector
// that the OTEL_ environment variables name, if they name one. Whoever hands a
// span over never waits; what finds no room is dropped and counted.
package trace

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Scope is the instrumentation scope of the spans that Baton makes.
const Scope = "baton"

// Options say who exports. The zero value is good for a test.
type Options struct {
	// Version and Node become service.version and service.instance.id.
	Version, Node string
	// Log hears of exports that fail. Defaults to one that discards.
	Log *slog.Logger
}

// Open makes a pipeline. It exports by OTLP when OTEL_EXPORTER_OTLP_ENDPOINT (or
// its _TRACES_ form) is set, or OTEL_TRACES_EXPORTER is otlp;
// OTEL_EXPORTER_OTLP_PROTOCOL chooses http/protobuf, the default, or grpc. The
// collector need not be there.
func Open(ctx context.Context, o Options) (*Pipeline, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Debug("OpenTelemetry", "error", err) }))
	res, err := resource.New(ctx, resource.WithSchemaURL(semconv.SchemaURL), resource.WithAttributes(
		attribute.String("service.name", "baton"),
		attribute.String("service.version", o.Version),
		attribute.String("service.instance.id", o.Node),
	), resource.WithFromEnv(), resource.WithHost(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, fmt.Errorf("OpenTelemetry resource: %w", err)
	}
	client, err := newClient()
	if err == nil && client != nil {
		err = client.Start(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("OpenTelemetry exporter: %w", err)
	}
	p := &Pipeline{
		log: o.Log, client: client,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{}),
		live: map[trace.SpanID]sdk.ReadWriteSpan{}, liveChanged: make(chan struct{}, 1),
	}
	p.into = otlptrace.NewUnstarted(intoPipeline{p})
	p.provider = sdk.NewTracerProvider(sdk.WithSpanProcessor(processor{p}), sdk.WithResource(res),
		sdk.WithSampler(sdk.AlwaysSample()), sdk.WithIDGenerator(ids{}))
	var working context.Context
	working, p.abort = context.WithCancel(context.WithoutCancel(ctx))
	go p.export(working)
	return p, nil
}

// Tracer makes spans that go through the pipeline.
func (p *Pipeline) Tracer() trace.Tracer {
	return p.provider.Tracer(Scope, trace.WithSchemaURL(semconv.SchemaURL))
}

// newClient returns nil where no variable asks for an export.
func newClient() (otlptrace.Client, error) {
	if Disabled() {
		return nil, nil
	}
	switch kind := os.Getenv("OTEL_TRACES_EXPORTER"); kind {
	case "none":
		return nil, nil
	case "otlp":
	case "":
		if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return nil, nil
		}
	default:
		return nil, fmt.Errorf("OTEL_TRACES_EXPORTER=%s: this build knows otlp and none", kind)
	}
	protocol := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	switch protocol {
	case "", "http/protobuf":
		return otlptracehttp.NewClient(), nil
	case "grpc":
		return otlptracegrpc.NewClient(), nil
	}
	return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL=%s: this build knows http/protobuf and grpc", protocol)
}

// Disabled reports whether OTEL_SDK_DISABLED turns everything off that leaves
// the node.
func Disabled() bool { return os.Getenv("OTEL_SDK_DISABLED") == "true" }

// processor hands each span of the SDK on when it ends, and knows those that
// have not.
type processor struct{ p *Pipeline }

func (t processor) OnStart(_ context.Context, s sdk.ReadWriteSpan) {
	t.p.mu.Lock()
	t.p.live[s.SpanContext().SpanID()] = s
	t.p.mu.Unlock()
	t.p.changed()
}

func (t processor) OnEnd(s sdk.ReadOnlySpan) {
	t.p.into.ExportSpans(context.Background(), []sdk.ReadOnlySpan{s}) // into Add, which never fails
	t.p.mu.Lock()
	delete(t.p.live, s.SpanContext().SpanID())
	t.p.mu.Unlock()
	t.p.changed()
}

func (processor) Shutdown(context.Context) error   { return nil }
func (processor) ForceFlush(context.Context) error { return nil }

// intoPipeline is the end of the SDK's exporter: it encodes, we carry.
type intoPipeline struct{ p *Pipeline }

func (intoPipeline) Start(context.Context) error { return nil }
func (intoPipeline) Stop(context.Context) error  { return nil }
func (c intoPipeline) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	for _, rs := range spans {
		c.p.Add(rs)
	}
	return nil
}
