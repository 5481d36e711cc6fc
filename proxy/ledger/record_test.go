package ledger

import (
	"testing"
	"time"
)

func TestWhatASpanIsKeptFor(t *testing.T) {
	l, w := pair(t)
	var f Flow
	w.Accept(&f, 0, begin)
	rare := [16]byte{9: 0xfd, 10: 0x71} // among one in a hundred: 0xfd70a3d70a3d70 is 99 % of 56 bits
	usual := [16]byte{8: 0xff, 9: 0xfd, 10: 0x70}
	parent := [8]byte{7: 9}
	tests := []struct {
		name  string
		given Record
		took  time.Duration
		want  Flags
	}{
		{"an ordinary one", Record{Key: Key{Class: Status2xx}}, 0, 0},
		{"one in a hundred", Record{TraceID: rare, Key: Key{Class: Status2xx}}, 0, Chance},
		{"an error", Record{Key: Key{Class: Status5xx}}, 0, Erred},
		{"no whole response", Record{Key: Key{Class: Aborted}}, 0, Erred},
		{"the caller's fault", Record{Key: Key{Class: Status4xx}}, 0, 0},
		{"slow", Record{Key: Key{Class: Status2xx}}, 2 * DefaultSlow, Slow},
		{"a WebSocket that lives long", Record{Key: Key{Class: Status1xx, Protocol: WebSocket}}, time.Hour, 0},
		{"a probe", Record{Key: Key{Class: Status2xx}, Flags: Probing}, 0, Probing},
		{"sampled by the caller", Record{Key: Key{Class: Status2xx}, Flags: Sampled}, 0, Sampled},
	}
	for _, test := range tests {
		if test.given.TraceID == [16]byte{} {
			test.given.TraceID = usual
		}
		test.given.ParentID = parent
		request(&f, test.given, test.took)
		var kept []Record
		l.Kept(func(r *Record) { kept = append(kept, *r) })
		if (len(kept) > 0) != (test.want != 0) {
			t.Errorf("%s: %d spans kept", test.name, len(kept))
		} else if len(kept) > 0 && (kept[0].Flags != test.want || kept[0].ParentID != parent || kept[0].TraceID != test.given.TraceID) {
			t.Errorf("%s: %+v", test.name, kept[0])
		}
	}
	l.SetSlow(time.Millisecond)
	request(&f, Record{TraceID: usual, Key: Key{Class: Status2xx}}, 2*time.Millisecond)
	n := 0
	l.Kept(func(*Record) { n++ })
	if n != 1 {
		t.Error("the slow threshold is not heeded")
	}
}

func TestRecordsComeBackWhole(t *testing.T) {
	l, w := pair(t)
	var f Flow
	w.Accept(&f, 1, begin)
	r := Record{
		Key: Key{Route: 1, Protocol: HTTP2, Class: Status5xx}, TraceID: [16]byte{1, 2, 9: 0x7f, 15: 3}, SpanID: [8]byte{4}, ParentID: [8]byte{5},
		Head: 3 * time.Millisecond, Status: 502, Method: "POST", Host: "example.org", Path: "/a/b",
		Client: "[2001:db8::1]:40000", Upstream: "127.0.0.1:9001", Error: "upstream-connect",
	}
	request(&f, r, 4*time.Millisecond)
	var kept, all []Record
	l.Kept(func(r *Record) { kept = append(kept, *r) })
	l.Requests(func(r *Record) { all = append(all, *r) })
	if len(kept) != 1 || len(all) != 1 {
		t.Fatalf("%d kept of %d", len(kept), len(all))
	}
	want := r
	want.Listener, want.Flow, want.Flags, want.Duration = 1, 1, Erred, 4*time.Millisecond
	want.Start = kept[0].Start
	if kept[0] != want {
		t.Errorf("%+v\nwant %+v", kept[0], want)
	}
	if at := l.Time(kept[0].Start); at.Sub(begin).Abs() > time.Second {
		t.Errorf("it began at %v, and the ledger says %v", begin, at)
	}
	if all[0].TraceID != r.TraceID || all[0].SpanID != r.SpanID || all[0].Duration != want.Duration || all[0].Key != want.Key || all[0].Status != 502 {
		t.Errorf("%+v", all[0])
	}

	long := make([]byte, 1000)
	for i := range long {
		long[i] = 0xc3 // and no character
	}
	request(&f, Record{Key: Key{Class: Aborted}, Path: string(long), Method: string(long)}, 0)
	l.Kept(func(r *Record) {
		if r.Path == "" || len(r.Path) > 1000 || r.Path[0] == 0xc3 {
			t.Errorf("path %q", r.Path)
		}
	})
}

func TestRingsSayWhatTheyLost(t *testing.T) {
	l, w := pair(t)
	var f Flow
	w.Accept(&f, 0, begin)
	const n = keptSlots + 100
	for range n {
		request(&f, Record{Key: Key{Class: Aborted}}, 0)
	}
	kept, all := 0, 0
	l.Kept(func(*Record) { kept++ })
	l.Requests(func(*Record) { all++ })
	r := l.Read()
	if kept != keptSlots || r.LostKept != n-keptSlots || all != recordSlots || r.LostRequests != n-recordSlots {
		t.Errorf("%d kept, %d lost; %d requests, %d lost", kept, r.LostKept, all, r.LostRequests)
	}
	if total := r.Total(); total.Requests != n || r.Damage != "" {
		t.Errorf("the counters say %d; %s", total.Requests, r.Damage)
	}
}

// A writer that died in the middle of a record costs that record.
func TestUnfinishedRecordIsWaitedForOnce(t *testing.T) {
	l, w := pair(t)
	var f Flow
	w.Accept(&f, 0, begin)
	w.layout.keptRing().claim(w.mem)
	request(&f, Record{Key: Key{Class: Aborted}}, 0)
	for i, want := range []int{0, 1, 0} {
		n := 0
		if l.Kept(func(*Record) { n++ }); n != want {
			t.Errorf("time %d: %d records, want %d", i, n, want)
		}
	}
	if r := l.Read(); r.LostKept != 1 || r.Damage != "" {
		t.Errorf("%d lost; %s", r.LostKept, r.Damage)
	}
}
