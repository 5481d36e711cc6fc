package faults

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/supervisor/trace"
	"github.com/baton-mesh/baton/tests/node"
)

// A collector that fails, in whatever way, is of no consequence to a release: it
// passes, nobody's request fails, the old generation drains without a flow cut,
// and the release's own trace is whole in the store. With BATON_KILLS, as many
// releases beside each kind of collector.
func TestReleaseBesideABadCollector(t *testing.T) {
	for _, test := range []struct {
		name  string
		start func(*testing.T) (url string)
	}{
		{"none", func(*testing.T) string { return "" }},
		{"down", func(*testing.T) string { return "http://127.0.0.1:1" }},
		{"never answers", answering(func(_ http.ResponseWriter, _ *http.Request, stuck chan struct{}) { <-stuck })},
		{"refuses", answering(func(w http.ResponseWriter, _ *http.Request, _ chan struct{}) {
			http.Error(w, "no", http.StatusBadRequest)
		})},
		{"answers garbage", garbage},
	} {
		if os.Getenv("BATON_KILLS") == "" && test.name != "never answers" {
			continue // the one that holds up whoever waits for it
		}
		t.Run(test.name, func(t *testing.T) {
			url := test.start(t)
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
			t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
			n := node.Start(t, demo.Place{}, demo.Settings{})
			load := node.Under(t, n, nil)
			file, err := n.WriteConfig("candidate", demo.Settings{})
			if err != nil {
				t.Fatal(err)
			}

			var releases, drains []time.Duration
			var last uint64
			for range kills(t, 1) {
				begun := time.Now()
				res, err := n.Release(t.Context(), file)
				if err != nil || res.Outcome != "passed" {
					t.Fatalf("%+v, %v", res, err)
				}
				releases = append(releases, time.Since(begun).Round(time.Millisecond))
				begun, last = time.Now(), uint64(res.ID)
				node.Eventually(t, "one generation is left", func() bool { return len(status(t, n).Generations) == 1 })
				drains = append(drains, time.Since(begun).Round(time.Millisecond))
			}
			load.End()
			st, err := admin.Dial(n.Socket()).Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if st.Drained.Cut > 0 {
				t.Errorf("%d flows were cut", st.Drained.Cut)
			}
			if c := st.Spans.Export; url == "" && c != (trace.Counts{}) || url != "" && c.Exported > 0 {
				t.Errorf("exported to nobody: %+v", c)
			}
			for _, name := range []string{"release", "shift", "drain", "reap"} {
				node.Eventually(t, name+" is stored", func() bool { return spanOf(t, n, last, name) != nil })
			}
			slices.Sort(releases)
			slices.Sort(drains)
			t.Logf("%d operations, none failed; releases took %v, what was left of the drain %v; spans %+v", len(load.Ops()), releases, drains, st.Spans.Export)
		})
	}
}

// answering starts a collector that speaks HTTP at least; stuck is closed at the end of the test.
func answering(h func(w http.ResponseWriter, r *http.Request, stuck chan struct{})) func(*testing.T) string {
	return func(t *testing.T) string {
		stuck := make(chan struct{})
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h(w, r, stuck) }))
		t.Cleanup(func() { close(stuck); s.CloseClientConnections(); s.Close() })
		return s.URL
	}
}

func garbage(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, strings.Repeat("\xff\x00garbage", 100))
			c.Close()
		}
	}()
	return fmt.Sprint("http://", l.Addr())
}
