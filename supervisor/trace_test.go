package supervisor

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// A release is one trace, each stage one span of it, each probe a child of its stage.
func TestReleaseIsOneTrace(t *testing.T) {
	exported := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(exported))
	defer provider.Shutdown(context.Background())
	n := serve(t, conf(t, "serve"))
	n.s.tracer = provider.Tracer("test")

	passed := n.release(n.conf, Request{})
	refused := n.release(n.like("die-unready"), Request{})
	for _, want := range []struct {
		result Result
		failed bool
		spans  []string // children of the root, in order of their end
	}{
		{passed, false, []string{"validate", "start", "probe", "shift", "verify"}},
		{refused, true, []string{"validate", "start", "undo start"}},
	} {
		var root tracetest.SpanStub
		for _, s := range exported.GetSpans() {
			if s.SpanContext.TraceID().String() == want.result.TraceID && !s.Parent.IsValid() {
				root = s
			}
		}
		if root.Name != "release" || (root.Status.Code == codes.Error) != want.failed {
			t.Errorf("release %d: root %q, status %v", want.result.ID, root.Name, root.Status)
		}
		var stages []string
		probes := map[string]int{}
		for _, s := range exported.GetSpans() {
			if s.SpanContext.TraceID() != root.SpanContext.TraceID() || s.SpanContext.SpanID() == root.SpanContext.SpanID() {
				continue
			}
			if s.Parent.SpanID() == root.SpanContext.SpanID() {
				stages = append(stages, s.Name)
			} else {
				probes[s.Name]++
			}
		}
		if len(stages) != len(want.spans) {
			t.Errorf("release %d: spans %v, want %v", want.result.ID, stages, want.spans)
			continue
		}
		for i := range stages {
			if stages[i] != want.spans[i] {
				t.Errorf("release %d: spans %v, want %v", want.result.ID, stages, want.spans)
			}
		}
		probed := probesEach
		if want.result.Verdict != nil {
			probed++ // once more before the verdict
		}
		if !want.failed && probes["probe connection"] != probed {
			t.Errorf("probe spans: %v, want %d", probes, probed)
		}
	}
}
