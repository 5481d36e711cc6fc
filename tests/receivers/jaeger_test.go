package receivers

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/baton-mesh/baton/tests/program"
)

// It keeps traces in memory.
const jaegerSettings = `
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}
  telemetry: {metrics: {level: none}, logs: {level: error}}
extensions:
  jaeger_query: {storage: {traces: memory}, http: {endpoint: "%s"}, grpc: {endpoint: "%s"}}
  jaeger_storage: {backends: {memory: {memory: {max_traces: 10000}}}}
receivers:
  otlp: {protocols: {grpc: {endpoint: "%s"}, http: {endpoint: "%s"}}}
exporters:
  jaeger_storage_exporter: {trace_storage: memory}
`

func TestJaegerShowsARelease(t *testing.T) {
	path := pathOf(t, "jaeger", buildJaeger)
	at := addresses(t, 4)
	start(t, path, "--config=", fmt.Sprintf(jaegerSettings, at[0], at[1], at[2], at[3]))
	query := "http://" + at[0]
	answers(t, query+"/api/services")
	receiver{at[2], at[3], func(t *testing.T, trace string) map[string]bool { return jaegerSpans(t, query, trace) }}.seesReleases(t)
}

// buildJaeger builds the last version that is a Go module.
func buildJaeger(t *testing.T, dir string) string {
	const module = "github.com/jaegertracing/jaeger/cmd/jaeger"
	program.Go(t, dir,
		[]string{"mod", "init", "jaeger"},
		[]string{"get", "-tool", module + "@v1.76.0"},
		[]string{"build", "-o", "jaeger", module})
	return filepath.Join(dir, "jaeger")
}

func jaegerSpans(t *testing.T, query, trace string) map[string]bool {
	t.Helper()
	resp, err := http.Get(query + "/api/traces/" + trace)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	var answer struct {
		Data []struct {
			Spans []struct{ OperationName, ProcessID string }
			// Processes are by ID.
			Processes map[string]struct{ ServiceName string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, trace := range answer.Data {
		for _, s := range trace.Spans {
			if trace.Processes[s.ProcessID].ServiceName == "baton" {
				all[s.OperationName] = true
			}
		}
	}
	return all
}
