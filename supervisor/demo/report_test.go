package demo

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	zero := time.Now()
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	window := func(from, to int) Window { return Window{at(from), at(to)} }
	op := func(kind Kind, from, to, wait int, err error) Op {
		return Op{Kind: kind, Start: at(from), End: at(to), Wait: time.Duration(wait) * time.Millisecond, Err: err}
	}
	ops := []Op{
		op(TCP, 0, 90, 1, nil),                    // before the release
		op(TCP, 0, 110, 5, nil),                   // under way when it begins
		op(TCP, 120, 180, 7, nil),                 // spans the first shift
		op(TCP, 151, 300, 9, nil),                 // begins in the window of the first, spans the second
		op(TCP, 310, 320, 2, nil),                 // after
		op(TCP, 120, 180, 99, io.EOF),             // failed: no latency, but it was there
		op(WebSocket, 110, 310, 3, ErrCut),        // cut
		op(WebSocket, 0, 1, 0, errors.New("502")), // failed
	}
	got := Summarize(ops, []Window{window(100, 300)}, []Window{window(150, 152), window(250, 251)}, nil)
	want := []KindReport{
		{Kind: WebSocket, Failed: 1, Cut: 1, AtShift: 1, Shifts: 2},
		{Kind: TCP, OK: 5, Failed: 1, AtShift: 1, Shifts: 2, Before: Latency{2, 2}, During: Latency{7, 9}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestJudge(t *testing.T) {
	result := func(id, exit, generation int) *Result {
		outcome := map[int]string{0: "passed", 3: "rolled_back", 5: "superseded"}[exit]
		return &Result{ID: id, Outcome: outcome, ExitCode: exit, Generation: generation}
	}
	good := step{exits: []int{exitPassed}}
	storm := step{exits: []int{exitPassed, exitRefused}}
	tests := []struct {
		name    string
		step    step
		results []*Result
		after   int // 4 served before
		want    string
	}{
		{"passed", good, []*Result{result(7, 0, 5)}, 5, ""},
		{"passed, but the old one serves", good, []*Result{result(7, 0, 5)}, 4, "generation 4 serves, not 5"},
		{"rolled back where good was expected", good, []*Result{result(7, 3, 5)}, 4, "exit code 3"},
		{"rolled back as expected", step{exits: []int{exitRolledBack}}, []*Result{result(7, 3, 5)}, 4, ""},
		{"rolled back, but the new one serves", step{exits: []int{exitRolledBack}}, []*Result{result(7, 3, 5)}, 5, "generation 5 serves, not 4"},
		{"latest wins", storm, []*Result{result(3, 0, 6), result(1, 0, 5), result(2, 5, 0)}, 6, ""},
		{"the last one superseded", storm, []*Result{result(1, 0, 5), result(2, 5, 0)}, 5, "the last request, release 2, was superseded"},
		{"none passed", storm, []*Result{result(1, 5, 0), result(2, 5, 0)}, 4, "none ended with exit code 0"},
	}
	for _, tt := range tests {
		report, why := tt.step.judge(tt.results, 4, tt.after)
		all := strings.Join(why, "; ")
		if (tt.want == "") != (all == "") || !strings.Contains(all, tt.want) || report.Expected != (tt.want == "") {
			t.Errorf("%s: %q, expected %t; want %q", tt.name, all, report.Expected, tt.want)
		}
	}
}

func TestReportSaysWhatHappened(t *testing.T) {
	r := &Report{
		Clients: []KindReport{{Kind: HTTPNew, OK: 1234, Failed: 1, Killed: 2, AtShift: 3}},
		Releases: []ReleaseReport{{Name: "storm", Stages: []Stage{{Name: "probe", MS: 12.34}},
			Outcomes: []Outcome{{"passed", 0, 2}, {"superseded", 5, 48}}}},
		Killed:   &KilledReport{PID: 99, Flows: 17, Failed: 2},
		Problems: []string{"http-new: closed without an answer"},
	}
	var b strings.Builder
	if _, err := r.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1234", "≥ 3", "12.3 ms", "2 × passed (0), 48 × superseded (5)", "owned 17 connections",
		"PROBLEM: http-new: closed", "FAILED"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
