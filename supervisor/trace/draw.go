package trace

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// mostDrawn bounds the requests of other traces that are drawn.
const mostDrawn = 50

// Draw writes the trace as a tree, each span with when it began after the root
// and how long it took, then its events; after it the requests of other traces
// that are among the spans.
func Draw(w io.Writer, spans *tracepb.TracesData, traceID string) {
	d := drawing{w: w, below: map[string][]*tracepb.Span{}}
	known := map[string]bool{}
	var own, others []*tracepb.Span
	for _, rs := range spans.ResourceSpans {
		for _, scope := range rs.ScopeSpans {
			for _, s := range scope.Spans {
				if hex.EncodeToString(s.TraceId) == traceID {
					own = append(own, s)
					known[string(s.SpanId)] = true
				} else {
					others = append(others, s)
				}
			}
		}
	}
	for _, s := range own {
		parent := string(s.ParentSpanId)
		if !known[parent] {
			parent = "" // the root, or one whose parent has not ended
		}
		d.below[parent] = append(d.below[parent], s)
		if d.begin == 0 || s.StartTimeUnixNano < d.begin {
			d.begin = s.StartTimeUnixNano
		}
	}
	if len(own) == 0 {
		fmt.Fprintln(w, "no span of this release is kept")
		return
	}
	fmt.Fprintf(w, "trace %s, began %s\n%12s %12s\n", traceID, at(d.begin).Format(time.RFC3339Nano), "AFTER", "TOOK")
	d.tree("", "", 0)
	if len(others) == 0 {
		return
	}
	slices.SortFunc(others, byStart)
	fmt.Fprintf(w, "\n%d requests kept while it ran:\n", len(others))
	for _, s := range others[:min(len(others), mostDrawn)] {
		d.line(s, s.Name+"  "+Text(s.Attributes, "url.path")+facts(s.Attributes))
	}
	if n := len(others) - mostDrawn; n > 0 {
		fmt.Fprintf(w, "%26s… and %d more, see --export\n", "", n)
	}
}

type drawing struct {
	w     io.Writer
	begin uint64
	below map[string][]*tracepb.Span // by parent
}

func byStart(a, b *tracepb.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) }

// tree draws what is below a span. A span is drawn once, so a circle ends.
func (d *drawing) tree(parent, indent string, depth int) {
	below := d.below[parent]
	delete(d.below, parent)
	slices.SortFunc(below, byStart)
	for i, s := range below {
		branch, further := "├─ ", "│  "
		if i == len(below)-1 {
			branch, further = "└─ ", "   "
		}
		if depth == 0 {
			branch, further = "", ""
		}
		d.line(s, indent+branch+s.Name+facts(s.Attributes))
		stem := indent + further
		if len(d.below[string(s.SpanId)]) > 0 {
			stem += "│"
		}
		for _, e := range s.Events {
			fmt.Fprintf(d.w, "%12s %12s  %s · %s%s\n", d.after(e.TimeUnixNano), "", stem, printable(e.Name), printable(eventFacts(e.Attributes)))
		}
		d.tree(string(s.SpanId), indent+further, depth+1)
	}
}

func (d *drawing) line(s *tracepb.Span, text string) {
	took := milliseconds(int64(s.EndTimeUnixNano - s.StartTimeUnixNano))
	if s.EndTimeUnixNano == 0 {
		took = "goes on"
	}
	if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		text += "  ERROR " + s.Status.GetMessage()
	}
	fmt.Fprintf(d.w, "%12s %12s  %s\n", d.after(s.StartTimeUnixNano), took, printable(text))
}

// printable keeps what others have written from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}

func (d *drawing) after(t uint64) string { return milliseconds(int64(t - d.begin)) }

func milliseconds(ns int64) string { return fmt.Sprintf("%.1f ms", float64(ns)/1e6) }

// facts are the attributes worth a place in a line.
func facts(all []*commonpb.KeyValue) string {
	var b strings.Builder
	for _, a := range all {
		switch a.Key {
		case string(Generation), string(Listener), string(DrainCut), string(Exit), string(ReleaseOutcome), string(Kept), string(Interrupted), "http.response.status_code", "error.type":
			fmt.Fprintf(&b, "  %s=%s", strings.TrimPrefix(a.Key, "baton."), value(a.Value))
		}
	}
	return b.String()
}

func eventFacts(all []*commonpb.KeyValue) string {
	var b strings.Builder
	for _, a := range all {
		fmt.Fprintf(&b, "  %s", value(a.Value))
	}
	return b.String()
}

func value(v *commonpb.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	}
	return "…"
}
