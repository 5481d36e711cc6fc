package faults

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/supervisor/trace"
	"github.com/baton-mesh/baton/tests/node"
)

// A drain that a killed supervisor began is ended by the next one, in the trace of
// the release it belongs to, under the IDs and with the start that it had.
func TestTraceGoesOnAfterTheSupervisor(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{DrainTimeout: 20 * time.Second})
	stream, err := net.Dial("tcp", n.TCP.String())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	stream.SetDeadline(time.Now().Add(node.Enough))
	if _, err := stream.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	file, err := n.WriteConfig("candidate", demo.Settings{DrainTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.Release(t.Context(), file)
	if err != nil || res.Outcome != "passed" {
		t.Fatalf("%+v, %v", res, err)
	}
	// The stream holds the drain up, and its span is stored before it ends.
	open := filepath.Join(n.Dir, "run", "traces", "open.otlp")
	node.Eventually(t, "the drain is stored as open", func() bool {
		data, err := os.ReadFile(open)
		return err == nil && bytes.Contains(data, []byte("drain"))
	})
	if drain := spanOf(t, n, uint64(res.ID), "drain"); drain != nil {
		t.Fatalf("the drain has ended, with a stream open: %v", drain)
	}
	n.Kill()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream.Close()

	var drain, root *tracepb.Span
	node.Eventually(t, "the drain is in the trace of its release", func() bool {
		drain, root = spanOf(t, n, uint64(res.ID), "drain"), spanOf(t, n, uint64(res.ID), "release")
		return drain != nil && root != nil
	})
	if string(drain.ParentSpanId) != string(root.SpanId) || drain.StartTimeUnixNano < root.StartTimeUnixNano {
		t.Errorf("root %v, drain %v", root, drain)
	}
	if !slices.ContainsFunc(drain.Events, func(e *tracepb.Span_Event) bool { return e.Name == trace.EventResumed }) {
		t.Errorf("it was not resumed: %v", drain.Events)
	}
	node.Eventually(t, "nothing is left open", func() bool {
		data, err := os.ReadFile(open)
		return os.IsNotExist(err) || err == nil && !bytes.Contains(data, drain.SpanId)
	})
}

// spanOf is the span of that name in a release's own trace; nil if it has not ended.
func spanOf(t *testing.T, n *demo.Node, release uint64, name string) *tracepb.Span {
	t.Helper()
	text, err := admin.Dial(n.Socket()).Trace(t.Context(), release)
	if err != nil {
		t.Fatal(err)
	}
	spans, err := trace.ParseJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, rs := range spans.ResourceSpans {
		for _, scope := range rs.ScopeSpans {
			for _, s := range scope.Spans {
				if s.Name == name {
					return s
				}
			}
		}
	}
	return nil
}
