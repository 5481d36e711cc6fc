// Package jaeger shows a release to a receiver of traces that is not ours. It
// builds Jaeger, in a module of its own: none of it is in Baton's.
package jaeger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// module is the tool and its version; the Go module ends with it.
const module = "github.com/jaegertracing/jaeger/cmd/jaeger@v1.76.0"

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// settings make it take OTLP and answer queries, on loopback, in memory.
const settings = `
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}
  telemetry: {metrics: {level: none}, logs: {level: error}}
extensions:
  jaeger_query: {storage: {traces: memory}, http: {endpoint: "127.0.0.1:%[1]d"}, grpc: {endpoint: "127.0.0.1:%[2]d"}}
  jaeger_storage: {backends: {memory: {memory: {max_traces: 10000}}}}
receivers:
  otlp: {protocols: {grpc: {endpoint: "127.0.0.1:%[3]d"}, http: {endpoint: "127.0.0.1:%[4]d"}}}
exporters:
  jaeger_storage_exporter: {trace_storage: memory}
`

// receiver is a Jaeger that runs.
type receiver struct{ query, grpc, http string }

func start(t *testing.T) receiver {
	t.Helper()
	program := os.Getenv("BATON_TEST_JAEGER")
	if program == "" {
		t.Skip("builds Jaeger, which takes minutes and the network: make jaeger")
	}
	if program == "1" {
		program = build(t)
	}
	p := ports(t, 4)
	file := filepath.Join(t.TempDir(), "jaeger.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, settings, p[0], p[1], p[2], p[3]), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "--config", file)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("Jaeger: %s", log.String())
		}
	})
	r := receiver{fmt.Sprintf("http://127.0.0.1:%d", p[0]), fmt.Sprintf("http://127.0.0.1:%d", p[2]), fmt.Sprintf("http://127.0.0.1:%d", p[3])}
	node.Eventually(t, "Jaeger answers", func() bool {
		resp, err := http.Get(r.query + "/api/services")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
	return r
}

func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{{"mod", "init", "jaeger"}, {"get", "-tool", module}, {"build", "-o", "jaeger", module[:len(module)-len("@v1.76.0")]}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	return filepath.Join(dir, "jaeger")
}

func ports(t *testing.T, n int) (all []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all = append(all, l.Addr().(*net.TCPAddr).Port)
	}
	return all
}

// spans are the names of a trace's spans, as Jaeger has them.
func (r receiver) spans(t *testing.T, trace string) (names []string, service string) {
	t.Helper()
	resp, err := http.Get(r.query + "/api/traces/" + trace)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Data []struct {
			Spans     []struct{ OperationName string }
			Processes map[string]struct{ ServiceName string }
		}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, ""
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, trace := range answer.Data {
		for _, s := range trace.Spans {
			names = append(names, s.OperationName)
		}
		for _, p := range trace.Processes {
			if p.ServiceName == "baton" {
				service = p.ServiceName
			}
		}
	}
	slices.Sort(names)
	return names, service
}

// A release is seen in Jaeger as one trace: exported while it happens, by either
// protocol, and brought there later as a file.
func TestJaegerShowsARelease(t *testing.T) {
	to := start(t)
	want := []string{"drain", "probe", "reap", "release", "shift", "start", "validate", "verify"}
	for protocol, endpoint := range map[string]string{"grpc": to.grpc, "http/protobuf": to.http, "file": ""} {
		t.Run(protocol, func(t *testing.T) {
			if endpoint != "" {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
				t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
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
			all, err := admin.Dial(n.Socket()).Releases(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			trace := all[len(all)-1].TraceID
			if endpoint == "" {
				node.Eventually(t, "the trace is whole", func() bool {
					text, err := admin.Dial(n.Socket()).Trace(t.Context(), uint64(res.ID))
					return err == nil && bytes.Contains(text, []byte(`"reap"`))
				})
				bring(t, n, to, uint64(res.ID))
			}
			var got []string
			var service string
			deadline := time.Now().Add(node.Enough)
			for {
				got, service = to.spans(t, trace)
				missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return slices.Contains(got, name) })
				if len(missing) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("Jaeger has %v of the trace, and not %v", got, missing)
				}
				time.Sleep(50 * time.Millisecond)
			}
			if service != "baton" {
				t.Error("no span is of the service baton")
			}
			t.Logf("trace %s: %d spans: %v", trace, len(got), got)
		})
	}
}

// bring sends what `baton releases ID --export` writes.
func bring(t *testing.T, n *demo.Node, to receiver, release uint64) {
	t.Helper()
	text, err := admin.Dial(n.Socket()).Trace(t.Context(), release)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(to.http+"/v1/traces", "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("Jaeger refuses the file: %s", resp.Status)
	}
}
