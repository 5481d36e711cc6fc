package trace

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// The variables of the OpenTelemetry specification decide alone, and what is
// exported is what a collector reads.
func TestSpansAreExportedByTheVariables(t *testing.T) {
	var got collector.ExportTraceServiceRequest
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &got)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL.Path, err)
		}
	}))
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")

	p := open(t)
	_, span := p.Tracer().Start(t.Context(), "release")
	span.End()
	p.Close(t.Context())
	if len(got.ResourceSpans) != 1 || len(got.ResourceSpans[0].ScopeSpans) != 1 || got.ResourceSpans[0].ScopeSpans[0].Spans[0].Name != "release" {
		t.Fatalf("exported: %v", &got)
	}
	attributes := map[string]string{}
	for _, a := range got.ResourceSpans[0].Resource.Attributes {
		attributes[a.Key] = a.Value.GetStringValue()
	}
	for key, want := range map[string]string{
		"service.name": "baton", "service.version": "v1", "service.instance.id": "edge-1", "deployment.environment.name": "test",
	} {
		if attributes[key] != want {
			t.Errorf("%s is %q, want %q", key, attributes[key], want)
		}
	}
}

func TestOffUnlessAskedFor(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"nothing set": {},
		"none":        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
		"disabled":    {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range env {
				t.Setenv(k, v)
			}
			p := open(t)
			if p.Exports() {
				t.Error("an export that nobody asked for")
			}
			_, span := p.Tracer().Start(t.Context(), "release")
			span.End()
			p.Close(t.Context())
			if c := p.Counts(); c != (Counts{}) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// open is a pipeline that ends with the test.
func open(t *testing.T) *Pipeline {
	t.Helper()
	p, err := Open(t.Context(), Options{Version: "v1", Node: "edge-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.Close(ctx)
	})
	return p
}

func TestWhatThisBuildDoesNotKnow(t *testing.T) {
	for variable, value := range map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"} {
		t.Run(variable, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(variable, value)
			if _, err := Open(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), value) {
				t.Errorf("%v, want one that names %s", err, value)
			}
		})
	}
}
