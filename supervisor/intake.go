package supervisor

import (
	"fmt"
	"os"
	"strings"

	"github.com/baton-mesh/baton/supervisor/trace"
)

// instanceID tells the generations of a node apart, in spans as in what they
// are told.
func instanceID(node string, generation uint64) string {
	return fmt.Sprintf("%s-%d", node, generation)
}

// openIntake gives a generation that is not ours an endpoint of its own for its
// spans. Ours has its ledger.
func (s *Supervisor) openIntake(g *generation) {
	if g.recipe.config.Proxy.Baton || trace.Disabled() {
		return
	}
	var err error
	g.intake, err = s.intakes.Listen(generationTag(s.config.Node.Name, g.id), s.traces.Add)
	if err != nil {
		s.log.Warn("the generation's spans are not received", "generation", g.id, "error", err)
	}
}

const otlp = "OTEL_EXPORTER_OTLP_"

// forSignals are the parts of OTEL_EXPORTER_OTLP_ that say where to and how.
var forSignals = []string{"ENDPOINT", "PROTOCOL", "HEADERS", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE", "INSECURE"}

// exportEnv changes an environment so that traces go to the endpoint. Metrics
// and logs go where they would have gone without it; nowhere, if that is
// nowhere.
func exportEnv(env []string, endpoint string) []string {
	var out []string
	given := map[string]string{}
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		given[key] = value
		part, ok := strings.CutPrefix(key, otlp)
		if ok && !strings.HasPrefix(part, "METRICS_") && !strings.HasPrefix(part, "LOGS_") {
			continue
		}
		out = append(out, kv)
	}
	add := func(key, value string) {
		if _, ok := given[key]; !ok {
			out = append(out, key+"="+value)
		}
	}
	for _, signal := range []string{"METRICS", "LOGS"} {
		if given[otlp+"ENDPOINT"] == "" && given[otlp+signal+"_ENDPOINT"] == "" {
			add("OTEL_"+signal+"_EXPORTER", "none")
			continue
		}
		for _, part := range forSignals {
			value, ok := given[otlp+part]
			if !ok {
				continue
			}
			if part == "ENDPOINT" && given[otlp+"PROTOCOL"] != "grpc" {
				value = strings.TrimSuffix(value, "/") + "/v1/" + strings.ToLower(signal)
			}
			add(otlp+signal+"_"+part, value)
		}
	}
	return append(out, otlp+"ENDPOINT="+endpoint, otlp+"PROTOCOL=http/protobuf")
}

// resourceAttributes is OTEL_RESOURCE_ATTRIBUTES of a generation.
func resourceAttributes(node string, generation uint64) string {
	own := fmt.Sprintf("service.instance.id=%s,%s=%d", instanceID(node, generation), trace.Generation, generation)
	if given := os.Getenv("OTEL_RESOURCE_ATTRIBUTES"); given != "" {
		return given + "," + own
	}
	return own
}
