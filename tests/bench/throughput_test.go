package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-mesh/baton/tests/need"
)

func TestFigure(t *testing.T) {
	var f Figure
	if f.Median() != 0 || f.text(1) != "–" {
		t.Errorf("nothing measured: %v, %q", f.Median(), f.text(1))
	}
	for _, v := range []float64{4, 1, 3} {
		f.add(v)
	}
	if got, want := f.text(1), "3.0 [1.0–4.0]"; got != want {
		t.Errorf("text: %q, want %q", got, want)
	}
	f.add(10)
	b, err := json.Marshal(f)
	if want := `{"median":3.5,"min":1,"max":10,"n":4,"values":[4,1,3,10]}`; err != nil || string(b) != want {
		t.Errorf("JSON: %s, %v; want %s", b, err, want)
	}
}

// Of eight measurements there are 36 means; tables of Wilcoxon's test have 3 for eight and 5 %, so
// the interval is from the fourth of them to the fourth from above.
func TestEstimate(t *testing.T) {
	var f Figure
	if got := f.estimateText(0); got != "–" {
		t.Errorf("nothing measured: %s", got)
	}
	for _, v := range []float64{3.1, 9.9, 5.2, 4.3, 5.8, 7.0, 12.4, 2.2} {
		if len(f.values) == fewest-1 {
			if got := f.estimateText(1); got != "5.2 [?]" {
				t.Errorf("of few: %s", got)
			}
		}
		f.add(v)
	}
	if got, want := f.estimateText(2), "5.93 [3.25, 9.70]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, tt := range []struct {
		atMost  float64
		verdict string
	}{{3.2, "MISSED"}, {5, "open"}, {10, "met"}} {
		if e := estimated("", f, tt.atMost); e.Verdict != tt.verdict {
			t.Errorf("at most %v: %s, want %s", tt.atMost, e.Verdict, tt.verdict)
		}
	}
}

// A second with a replacement is compared with those beside, so is one without, of which
// the share is all; a machine that slows down changes neither.
func TestThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, replaced, lost := time.Now(), 0, int64(0)
		s := subject{
			clients: func(ctx context.Context) (int, error) { <-ctx.Done(); return 3, nil },
			// One each millisecond, but for a hundred of them at a replacement.
			answered: func() int64 { return time.Since(began).Milliseconds() - lost },
			replace: func(ctx context.Context) error {
				replaced++
				lost += 100
				return sleep(ctx, 300*time.Millisecond)
			},
			cpu: func() (time.Duration, error) { return time.Since(began) / 2, nil },
		}
		var got Throughput
		for range 2 {
			if err := got.run(t.Context(), s, 2); err != nil {
				t.Fatal(err)
			}
		}
		if replaced != 4 || got.Errors != 6 {
			t.Errorf("%d replacements, %d errors; want 4, 6", replaced, got.Errors)
		}
		for _, f := range []struct {
			name  string
			of    Figure
			times int
			want  string
		}{
			{"steady", got.Steady, 10, "1000 [1000–1000]"},
			{"during", got.During, 4, "900 [900–900]"},
			{"share", got.Share, 4, "90 [90–90]"},
			{"control", got.Control, 4, "100 [100–100]"},
			{"after", got.After, 2, "100 [100–100]"},
			{"CPU", got.CPU, 10, "500 [500–500]"},
			{"CPU during", got.CPUDuring, 4, "556 [556–556]"},
		} {
			if text := f.of.text(0); text != f.want || len(f.of.values) != f.times {
				t.Errorf("%s: %d times, %s; want %d times %s", f.name, len(f.of.values), text, f.times, f.want)
			}
		}
		s.replace = func(context.Context) error { return errors.New("none") }
		if err := got.run(t.Context(), s, 1); err == nil {
			t.Error("a replacement that fails is no error")
		}
	})
}

// What is compared are neighbours: the second after a replacement with those after none.
func TestThroughputOfNeighbours(t *testing.T) {
	var all []count
	for i, perSecond := range []float64{1000, 880, 960, 940, 920, 810, 792, 860, 840} { // 20 less each second, and two dips
		kind := steady
		if i > 0 {
			kind = period[(i-1)%len(period)]
		}
		all = append(all, count{kind: kind, perSecond: perSecond})
	}
	var got Throughput
	got.add(all)
	for _, f := range []struct {
		name string
		of   Figure
		want string
	}{
		{"share", got.Share, "92.2 [89.8–94.6]"},
		{"control", got.Control, "102.7 [100.0–105.4]"},
		{"after", got.After, "90.0 [90.0–90.0]"},
	} {
		if text := f.of.text(1); text != f.want {
			t.Errorf("%s: %s, want %s", f.name, text, f.want)
		}
	}
}

// A replacement costs what its window takes beyond those beside.
func TestCost(t *testing.T) {
	need.Root(t, "it makes a cgroup")
	g, err := enterGroup()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.leave(); err != nil {
			t.Error(err)
		}
	}()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	var c Cost
	replaced := 0
	if err := c.run(t.Context(), server.URL, g, func(context.Context) error { replaced++; return nil }, 1); err != nil {
		t.Fatal(err)
	}
	if replaced != 1 || len(c.Replacement.values) != 1 || len(c.Control.values) != 1 || c.Errors == 0 {
		t.Errorf("%d replacements, %+v", replaced, c)
	}
}
