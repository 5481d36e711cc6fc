package judge

import (
	"errors"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
)

// A candidate is in doubt when somebody waits and for a while nobody got an answer.
func TestDoubtful(t *testing.T) {
	long := time.Now().Add(-time.Minute)
	open := func(s *Side, _ int) { s.Flows[flows.Established]++ }
	for name, tt := range map[string]struct {
		change   func(s *Side, reading int) // 1 to 4, of which 200 ms lie between two
		readings int
		asked    time.Time
		want     bool
	}{
		"nobody is there":                  {func(*Side, int) {}, 4, long, false},
		"a flow gets no answer":            {open, 4, long, true},
		"one waits to be accepted":         {func(s *Side, _ int) { s.Queued.ToAccept = 1 }, 4, long, true},
		"another got one":                  {func(s *Side, reading int) { open(s, 0); s.Flows[flows.Answered] += uint64(reading) }, 4, long, false},
		"one got one a while ago":          {func(s *Side, reading int) { open(s, 0); s.Flows[flows.Answered] += uint64(min(reading, 2)) }, 4, long, false},
		"for too short":                    {open, 3, long, false},
		"it has just been asked":           {open, 4, time.Now(), false},
		"the reading before it had a flow": {open, 1, long, false},
	} {
		c, now := two()
		s, at := c.own(now), now.At
		for f := range s.Flows {
			s.Flows[f] = 0
		}
		c.readings = c.readings[:1]
		c.first().At = at.Add(-time.Minute)
		for i := range tt.readings {
			one := s
			tt.change(&one, i+1)
			c.Add(Reading{At: at.Add(time.Duration(i) * silence / 3), Sides: map[uint64]Side{2: one}})
		}
		if got := c.Doubtful(tt.asked); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
		c.counted = false
		if c.Doubtful(tt.asked) {
			t.Errorf("%s, uncounted: in doubt", name)
		}
		c.Asked(errors.New("no answer"))
		if !c.Doubtful(tt.asked) {
			t.Errorf("%s: not in doubt after a probe that failed", name)
		}
	}
}

// Two probes that fail in a row are enough, and one that tells who it is.
func TestHears(t *testing.T) {
	no := errors.New("no answer")
	for _, tt := range []struct {
		asked []error
		want  bool
	}{
		{nil, true}, {[]error{no}, true}, {[]error{no, no}, false}, {[]error{no, nil, no}, true}, {[]error{ErrIdentity}, false},
	} {
		c, _ := two()
		for _, err := range tt.asked {
			c.Asked(err)
		}
		if c.Hears() != tt.want {
			t.Errorf("after %v: %t", tt.asked, !tt.want)
		}
	}
}

// A release that is paused for hours is read all the time.
func TestReadingsAreBounded(t *testing.T) {
	c, now := two()
	first := c.first().At
	for i := range 2 * keptReadings {
		c.Add(Reading{At: now.At.Add(time.Duration(i) * ReadEvery), Sides: now.Sides})
	}
	if len(c.readings) != keptReadings || !c.first().At.Equal(first) {
		t.Errorf("%d readings, the first of %v, want %d and %v", len(c.readings), c.first().At, keptReadings, first)
	}
}

// A verdict counts what has come since the shift.
func TestVerdictCounts(t *testing.T) {
	c, now := two()
	before, own := c.own(c.first()), c.own(now)
	before.Flows[flows.Answered], before.Flows[flows.Failed], before.Moved.Failed = 10, 2, 2
	own.Flows[flows.Failed], own.Flows[flows.ResetQueued], own.Moved.Failed = 5, 1, 9
	c.first().Sides[2], now.Sides[2] = before, own
	if v := c.Verdict(nil); v.Flows["answered"] != 90 || v.Flows["failed"] != 3 || v.Harmed != 7+1 {
		t.Errorf("%+v", v)
	}
	c.counted = false
	if v := c.Verdict(nil); v.Harmed != 7 {
		t.Errorf("by its own word alone: %+v", v)
	}
}
