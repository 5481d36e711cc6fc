// Package receivers shows what Baton tells to programs that are not ours: releases to
// receivers of traces, dashboards to what reads them. Each is built in a module of its
// own: none of it is in Baton's.
package receivers

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/program"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// receiver is one that runs.
type receiver struct {
	grpc, http string // where it takes OTLP
	// spans are the names of what it has of a trace.
	spans func(t *testing.T, trace string) map[string]bool
}

// pathOf is the path of a receiver's program. The variable BATON_TEST_ and its name
// has it, or 1 to build it; without the variable the test is skipped.
func pathOf(t *testing.T, name string, build func(t *testing.T, dir string) string) string {
	t.Helper()
	switch path := os.Getenv("BATON_TEST_" + strings.ToUpper(name)); path {
	case "":
		t.Skipf("builds %s, which takes minutes and the network: make %s", name, name)
		return ""
	case "1":
		return build(t, t.TempDir())
	default:
		return path
	}
}

// copied copies a file.
func copied(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// start runs a program that reads its settings from a file, until the test ends.
func start(t *testing.T, path, flag, settings string) *program.Output {
	t.Helper()
	file := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	return program.Start(t, exec.Command(path, flag+file))
}

// addresses are free ones on loopback.
func addresses(t *testing.T, n int) (all []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all = append(all, l.Addr().String())
	}
	return all
}

// answers waits until a receiver says at an address that it is there.
func answers(t *testing.T, url string) {
	t.Helper()
	node.Eventually(t, url+" answers", func() bool {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	})
}

// A release is seen as one trace: exported while it happens, by either protocol,
// packed or not, and brought there later as a file.
func (to receiver) seesReleases(t *testing.T) {
	for _, by := range []struct{ protocol, endpoint, compression string }{
		{"grpc", to.grpc, "none"}, {"grpc", to.grpc, "gzip"},
		{"http/protobuf", to.http, "none"}, {"http/protobuf", to.http, "gzip"},
		{"file", "", ""},
	} {
		t.Run(by.protocol+" "+by.compression, func(t *testing.T) {
			if by.endpoint != "" {
				t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+by.endpoint)
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
			if by.endpoint == "" {
				to.bring(t, c, uint64(res.ID))
			}
			trace := all[len(all)-1].TraceID
			var got map[string]bool
			node.Eventually(t, "the trace is whole", func() bool {
				got = to.spans(t, trace)
				for _, name := range []string{"release", "validate", "start", "probe", "shift", "verify", "drain", "reap"} {
					if !got[name] {
						return false
					}
				}
				return true
			})
			t.Logf("trace %s: %v", trace, got)
		})
	}
}

// bring sends what `baton releases ID --export` writes, once it is whole.
func (to receiver) bring(t *testing.T, c *admin.Client, release uint64) {
	t.Helper()
	var text []byte
	node.Eventually(t, "the file is whole", func() bool {
		var err error
		text, err = c.Trace(t.Context(), release)
		return err == nil && bytes.Contains(text, []byte(`"reap"`))
	})
	resp, err := http.Post(fmt.Sprintf("http://%s/v1/traces", to.http), "application/json", bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the file is refused: %s", resp.Status)
	}
}
