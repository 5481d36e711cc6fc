// Package collector brings a release to the OpenTelemetry Collector, which is not
// ours either. It is built in a module of its own: none of it is in Baton's.
package collector

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// version is that of the parts of the collector that testdata/main.go.txt puts together.
const version = "v0.144.0"

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

const settings = `
receivers:
  otlp: {protocols: {grpc: {endpoint: "127.0.0.1:%d"}, http: {endpoint: "127.0.0.1:%d"}}}
exporters:
  debug: {verbosity: detailed}
service:
  pipelines:
    traces: {receivers: [otlp], exporters: [debug]}
  telemetry: {metrics: {level: none}}
`

// output is what the collector has printed.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// names are the spans of a trace, as the debug exporter prints them.
func (o *output) names(trace string) map[string]bool {
	all := map[string]bool{}
	for _, span := range strings.Split(o.String(), "Span #")[1:] {
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

type receiver struct {
	grpc, http string
	printed    *output
}

func start(t *testing.T) receiver {
	t.Helper()
	program := os.Getenv("BATON_TEST_COLLECTOR")
	if program == "" {
		t.Skip("builds the OpenTelemetry Collector, which takes minutes and the network: make collector")
	}
	if program == "1" {
		program = build(t)
	}
	ports := freePorts(t)
	file := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, settings, ports[0], ports[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	r := receiver{fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1]), new(output)}
	cmd := exec.Command(program, "--config", "file:"+file)
	cmd.Stdout, cmd.Stderr = r.printed, r.printed
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the collector: %.4000s", r.printed)
		}
	})
	node.Eventually(t, "the collector is ready", func() bool { return strings.Contains(r.printed.String(), "Everything is ready") })
	return r
}

func freePorts(t *testing.T) (all [2]int) {
	t.Helper()
	for i := range all {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all[i] = l.Addr().(*net.TCPAddr).Port
	}
	return all
}

func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("testdata/main.go.txt")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "main.go"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	of := func(part string) string { return "go.opentelemetry.io/collector/" + part + "@" + version }
	for _, args := range [][]string{
		{"mod", "init", "collector"},
		{"get", of("otelcol"), of("receiver/otlpreceiver"), of("exporter/debugexporter")},
		{"mod", "tidy"},
		{"build", "-o", "collector", "."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	return filepath.Join(dir, "collector")
}

// A release is seen in the collector as one trace: exported while it happens, by
// either protocol, packed or not, and brought there later as a file.
func TestCollectorShowsARelease(t *testing.T) {
	to := start(t)
	for _, by := range []struct{ protocol, endpoint, compression string }{
		{"grpc", to.grpc, "none"}, {"grpc", to.grpc, "gzip"},
		{"http/protobuf", to.http, "none"}, {"http/protobuf", to.http, "gzip"},
		{"file", "", ""},
	} {
		t.Run(by.protocol+" "+by.compression, func(t *testing.T) {
			if by.endpoint != "" {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", by.endpoint)
				t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", by.protocol)
				t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", by.compression)
			}
			n := node.Start(t, demo.Place{}, demo.Settings{})
			file, err := n.WriteConfig("candidate", demo.Settings{})
			if err != nil {
				t.Fatal(err)
			}
			res, err := n.Release(t.Context(), file)
			if err != nil || res.Outcome != "passed" {
				t.Fatalf("%+v, %v", res, err)
			}
			c := admin.Dial(n.Socket())
			all, err := c.Releases(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			trace := all[len(all)-1].TraceID
			if by.endpoint == "" {
				bring(t, c, to, uint64(res.ID))
			}
			node.Eventually(t, "the trace is whole", func() bool {
				got := to.printed.names(trace)
				for _, name := range []string{"release", "validate", "start", "probe", "shift", "verify", "drain", "reap"} {
					if !got[name] {
						return false
					}
				}
				return true
			})
			t.Logf("trace %s: %v", trace, to.printed.names(trace))
		})
	}
}

// bring sends what `baton releases ID --export` writes, once it is whole.
func bring(t *testing.T, c *admin.Client, to receiver, release uint64) {
	t.Helper()
	var text []byte
	node.Eventually(t, "the file is whole", func() bool {
		var err error
		text, err = c.Trace(t.Context(), release)
		return err == nil && bytes.Contains(text, []byte(`"reap"`))
	})
	resp, err := http.Post(to.http+"/v1/traces", "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the collector refuses the file: %s", resp.Status)
	}
}
