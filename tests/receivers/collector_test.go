package receivers

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/program"
)

const collectorSettings = `
receivers:
  otlp: {protocols: {grpc: {endpoint: "%s"}, http: {endpoint: "%s"}}}
exporters:
  debug: {verbosity: detailed}
service:
  pipelines:
    traces: {receivers: [otlp], exporters: [debug]}
  telemetry: {metrics: {level: none}}
`

func TestCollectorShowsARelease(t *testing.T) {
	path := pathOf(t, "collector", buildCollector)
	at := addresses(t, 2)
	printed := start(t, path, "--config=file:", fmt.Sprintf(collectorSettings, at[0], at[1]))
	node.Eventually(t, "the collector is ready", func() bool { return strings.Contains(printed.String(), "Everything is ready") })
	receiver{at[0], at[1], func(_ *testing.T, trace string) map[string]bool { return printedSpans(printed.String(), trace) }}.seesReleases(t)
}

// buildCollector puts together what testdata/collector.go.txt asks for.
func buildCollector(t *testing.T, dir string) string {
	copied(t, "testdata/collector.go.txt", filepath.Join(dir, "main.go"))
	of := func(part string) string { return "go.opentelemetry.io/collector/" + part + "@v0.144.0" }
	program.Go(t, dir,
		[]string{"mod", "init", "collector"},
		[]string{"get", of("otelcol"), of("receiver/otlpreceiver"), of("exporter/debugexporter")},
		[]string{"mod", "tidy"},
		[]string{"build", "-o", "collector", "."})
	return filepath.Join(dir, "collector")
}

// printedSpans are the names of a trace's spans, as the debug exporter prints them.
func printedSpans(text, trace string) map[string]bool {
	all := map[string]bool{}
	for _, span := range strings.Split(text, "Span #")[1:] {
		var id, name string
		for line := range strings.Lines(span) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch strings.TrimSpace(key) {
			case "Trace ID":
				id = value
			case "Name":
				if name == "" { // events have names, too
					name = value
				}
			}
		}
		if id == trace {
			all[name] = true
		}
	}
	return all
}
