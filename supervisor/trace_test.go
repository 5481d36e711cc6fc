package supervisor

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/store"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// spansOf are the spans of a release's own trace, in the order of their end.
func (n *node) spansOf(id uint64) (all []*tracepb.Span) {
	n.t.Helper()
	spans, err := n.s.Trace(id)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, rs := range spans.ResourceSpans {
		for _, scope := range rs.ScopeSpans {
			all = append(all, scope.Spans...)
		}
	}
	return all
}

func named(all []*tracepb.Span, name string) *tracepb.Span {
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// A release is one trace: each stage one span, each probe a child of its stage,
// each step of the ramp and each finding an event; and the end of the generation
// that it replaced belongs to it, beside whatever comes next.
func TestReleaseIsOneTrace(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	passed := n.release(n.like("serve", func(c *config.Config) { c.Release.Ramp = []config.Percent{0.5, 1} }), Request{})
	refused := n.release(n.like("die-unready"), Request{})
	if passed.Outcome != Passed || refused.Outcome != Refused {
		t.Fatalf("%+v, %+v", passed, refused)
	}
	for _, want := range []struct {
		result Result
		failed bool
		spans  []string // children of the root
	}{
		{passed, false, []string{"drain", "probe", "reap", "shift", "start", "validate", "verify"}},
		{refused, true, []string{"start", "undo start", "validate"}},
	} {
		var all []*tracepb.Span
		last := want.spans[0]
		if !want.failed {
			last = "reap"
		}
		eventually(t, "the last span of the release ends", func() bool {
			all = n.spansOf(want.result.ID)
			return named(all, "release") != nil && named(all, last) != nil
		})
		root := named(all, "release")
		if failed := root.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR; failed != want.failed || len(root.ParentSpanId) != 0 {
			t.Errorf("release %d: root %v", want.result.ID, root)
		}
		if got := trace.Text(root.Attributes, string(trace.ReleaseOutcome)); got != string(want.result.Outcome) {
			t.Errorf("release %d: outcome %q in its trace, %q in its result", want.result.ID, got, want.result.Outcome)
		}
		var stages []string
		probes := 0
		for _, s := range all {
			if hex.EncodeToString(s.TraceId) != want.result.TraceID {
				t.Errorf("%s is of another trace", s.Name)
			}
			switch {
			case string(s.ParentSpanId) == string(root.SpanId):
				stages = append(stages, s.Name)
			case named(all, "probe") != nil && string(s.ParentSpanId) == string(named(all, "probe").SpanId):
				probes++
			}
		}
		slices.Sort(stages)
		if !slices.Equal(stages, want.spans) {
			t.Errorf("release %d: spans %v, want %v", want.result.ID, stages, want.spans)
		}
		if want.failed {
			continue
		}
		if probes != probesEach {
			t.Errorf("%d probe spans", probes)
		}
		var events []string
		for _, e := range named(all, "shift").Events {
			events = append(events, e.Name)
		}
		if text := strings.Join(events, " "); !strings.HasPrefix(text, trace.EventRampStep+" ") || !strings.Contains(text, trace.EventShifted) {
			t.Errorf("events of the shift: %v", events)
		}
		if drain := named(all, "drain"); trace.Int(drain.Attributes, string(trace.Generation)) != int64(want.result.Previous) {
			t.Errorf("the drain is of another generation: %v", drain)
		}
	}
}

// The next supervisor has the history of those before it; a release that one of
// them could not end, and its spans, it ends.
func TestHistoryOutlivesTheSupervisor(t *testing.T) {
	c := conf(t, "serve")
	dir := filepath.Join(c.RuntimeDir, "traces")
	n := serve(t, c)
	before := n.release(c, Request{})
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}

	// As a supervisor leaves it that is killed in the middle of release 3.
	kept, err := store.Open(dir, store.Limits{}, n.s.log)
	if err != nil {
		t.Fatal(err)
	}
	cut := Result{ID: 99, Cause: "command", TraceID: strings.Repeat("ab", 16)}
	data, err := json.Marshal(cut)
	if err != nil {
		t.Fatal(err)
	}
	kept.PutRelease(cut.ID, data)
	id := []byte("\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab")
	open := &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource: &resourcepb.Resource{}, ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{}, Spans: []*tracepb.Span{
			{TraceId: id, SpanId: []byte("rootroot"), Name: "release", StartTimeUnixNano: 1e18},
			{TraceId: id, SpanId: []byte("shiftshi"), ParentSpanId: []byte("rootroot"), Name: "shift", StartTimeUnixNano: 1e18 + 5,
				Attributes: []*commonpb.KeyValue{trace.TextValue("a", "b")},
				Events:     []*tracepb.Span_Event{{Name: trace.EventRampStep, TimeUnixNano: 1e18 + 7}}},
		}}},
	}}}
	if err := kept.SaveOpen(open); err != nil {
		t.Fatal(err)
	}
	kept.Close()

	n = serve(t, c)
	var had *Result
	for _, r := range n.s.Results() {
		switch r.ID {
		case before.ID:
			had = &r
		case cut.ID:
			if r.Outcome != Failed || !strings.Contains(r.Reason, "supervisor ended") {
				t.Errorf("the release that was cut off: %+v", r)
			}
		}
	}
	if had == nil || had.Outcome != Passed || had.TraceID != before.TraceID || len(had.Stages) != len(before.Stages) {
		t.Errorf("the release before: %+v, want %+v", had, before)
	}
	all := n.spansOf(cut.ID)
	root, shift := named(all, "release"), named(all, "shift")
	if len(all) != 2 || root == nil || shift == nil {
		t.Fatalf("%v", all)
	}
	if string(root.SpanId) != "rootroot" || string(shift.SpanId) != "shiftshi" || string(shift.ParentSpanId) != "rootroot" {
		t.Errorf("other IDs: %v %v", root, shift)
	}
	if shift.StartTimeUnixNano != 1e18+5 || len(shift.Events) != 1 || shift.Events[0].TimeUnixNano != 1e18+7 || trace.Text(shift.Attributes, "a") != "b" {
		t.Errorf("not what was known of it: %v", shift)
	}
	for _, s := range all {
		if s.EndTimeUnixNano < s.StartTimeUnixNano || s.Status.GetCode() != tracepb.Status_STATUS_CODE_ERROR {
			t.Errorf("%s: %v", s.Name, s)
		}
	}
	if len(n.spansOf(before.ID)) == 0 {
		t.Error("the spans of the release before are gone")
	}
}

// Nothing that stands in the store's directory keeps a supervisor from serving.
func TestStoreThatCannotBeUsed(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"a file in its place": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"a directory in the place of a file": func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, "releases.log", "x"), 0o700)
		},
		"garbage": func(dir string) error {
			for i, name := range []string{"releases.log", "open.otlp", "spans-0000000000000000.otlp"} {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Repeat(fmt.Sprintf("BTN1%d", i), 1000)), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := conf(t, "serve")
			if err := os.MkdirAll(c.RuntimeDir, 0o711); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(c.RuntimeDir, "traces")); err != nil {
				t.Fatal(err)
			}
			n := serve(t, c)
			if res := n.release(c, Request{}); res.Outcome != Passed {
				t.Errorf("%+v", res)
			}
			if log := n.log.String(); !strings.Contains(log, "traces") {
				t.Error("the log says nothing of it")
			}
		})
	}
}
