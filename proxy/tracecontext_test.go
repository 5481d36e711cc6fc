package proxy_test

import (
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// The trace context goes on as it came, unless the caller samples: then what is
// behind us becomes our child, and our span is kept.
func TestTraceContext(t *testing.T) {
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	got := make(chan http.Header, 1)
	n, l := accounted(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
	}), "")
	long := "01-" + trace + "-" + parent + "-01-more"
	tests := []struct {
		name, field string
		child       bool
	}{
		{"none", "", false},
		{"sampled", "00-" + trace + "-" + parent + "-01", true},
		{"sampled, with other flags", "00-" + trace + "-" + parent + "-03", true},
		{"not sampled", "00-" + trace + "-" + parent + "-00", false},
		{"a later version", long, true},
		{"no such version", strings.Replace(long, "01-", "ff-", 1), false},
		{"version 00 with more", strings.Replace(long, "01-", "00-", 1), false},
		{"zero trace", "00-" + strings.Repeat("0", 32) + "-" + parent + "-01", false},
		{"zero parent", "00-" + trace + "-" + strings.Repeat("0", 16) + "-01", false},
		{"upper case", "00-" + strings.ToUpper(trace) + "-" + parent + "-01", false},
		{"short", "00-" + trace + "-" + parent, false},
		{"no hex", "00-" + strings.Repeat("x", 32) + "-" + parent + "-01", false},
	}
	c := dial(t, n.web)
	for i, test := range tests {
		fields := "Tracestate: a=b\r\n"
		if test.field != "" {
			fields += "Traceparent: " + test.field + "\r\n"
		}
		c.send("GET / HTTP/1.1\r\nHost: a.example\r\n" + fields + "\r\n")
		c.response()
		header := <-got
		if header.Get("Tracestate") != "a=b" {
			t.Errorf("%s: tracestate %q", test.name, header.Get("Tracestate"))
		}
		totals(t, l, uint64(i+1), 0, ledger.Flows{Accepted: 1})
		var kept []ledger.Record
		l.Kept(func(r *ledger.Record) { kept = append(kept, *r) })
		field := header.Get("Traceparent")
		if !test.child {
			if field != test.field {
				t.Errorf("%s: %q went on as %q", test.name, test.field, field)
			}
			continue
		}
		if len(kept) != 1 {
			t.Fatalf("%s: %d spans kept", test.name, len(kept))
		}
		k := kept[0]
		span := hex.EncodeToString(k.SpanID[:])
		if want := "00-" + trace + "-" + span + test.field[52:55]; field != want || span == parent {
			t.Errorf("%s: %q went on, want %q", test.name, field, want)
		}
		if hex.EncodeToString(k.TraceID[:]) != trace || hex.EncodeToString(k.ParentID[:]) != parent || k.Flags&ledger.Sampled == 0 {
			t.Errorf("%s: %+v", test.name, k)
		}
		if k.Method != "GET" || k.Host != "a.example" || k.Path != "/" || k.Status != 200 || k.Client == "" || k.Upstream == "" || k.Head <= 0 || k.Index != uint32(i) {
			t.Errorf("%s: %+v", test.name, k)
		}
	}
}

// Without a ledger nothing is kept, so nobody is to be our child.
func TestTraceContextWithoutALedger(t *testing.T) {
	const field = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	got := make(chan string, 1)
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Traceparent") }), "")
	c := dial(t, n.web)
	c.send("GET / HTTP/1.1\r\nHost: a\r\nTraceparent: " + field + "\r\n\r\n")
	c.response()
	if went := <-got; went != field {
		t.Errorf("%q went on", went)
	}
}
