package judge

import (
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
)

func TestLeaking(t *testing.T) {
	rising := func(from, by, times int) (all []Resources) {
		for i := range times {
			all = append(all, Resources{Descriptors: from + i*by, Threads: 10, Resident: 1 << 20, Limit: 1 << 20})
		}
		return all
	}
	for name, tt := range map[string]struct {
		seen []Resources
		peak uint64
		want string
	}{
		"nothing seen":                   {nil, 0, ""},
		"steady":                         {rising(100, 0, 50), 5, ""},
		"rises to what connections need": {rising(100, 100, 20), 1000, ""},
		"rises beyond":                   {rising(100, 100, 20), 10, "descriptors"},
		"rose and stays":                 {append(rising(100, 100, 20), rising(2000, 0, 3)...), 10, ""},
		"rises with pauses":              {append(append(rising(100, 100, 15), rising(1500, 0, 2)...), rising(1600, 100, 7)...), 10, "descriptors"},
		"rises and falls":                {append(append(rising(100, 100, 15), rising(1400, 0, 1)...), rising(1600, 100, 7)...), 10, ""},
		"the limit":                      {[]Resources{{Descriptors: 10, Limit: 100}, {Descriptors: 95, Limit: 100}}, 1000, "of at most 100"},
		"rises to just what is allowed":  {rising(100, 64, 20), 24, ""}, // 1,316 = 100 + 1,024 + 8 · 24
		"rises for too short":            {rising(100, 300, 10), 10, ""},
		"just below the limit":           {[]Resources{{Descriptors: 10, Limit: 100}, {Descriptors: 90, Limit: 100}}, 1000, ""},
		"began at half of the limit":     {[]Resources{{Descriptors: 50, Limit: 100}, {Descriptors: 95, Limit: 100}}, 1000, ""},
		"always near the limit":          {[]Resources{{Descriptors: 80, Limit: 100}, {Descriptors: 95, Limit: 100}}, 1000, ""},
	} {
		if got := leaking(tt.seen, tt.peak); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// What the candidate holds is asked for over readings with time between them, and its
// last one when it has ended says nothing.
func TestHoards(t *testing.T) {
	read := func(c *Case, every time.Duration, descriptors int, alive bool, open uint64) {
		own := c.own(c.now())
		own.Alive = alive
		own.Flows[flows.Established] = own.Flows[flows.Closed] + open
		c.Add(Reading{At: c.now().At.Add(every), Sides: map[uint64]Side{1: c.before(c.now()), 2: own}, Resources: Resources{Descriptors: descriptors, Threads: 1}})
	}
	for name, tt := range map[string]struct {
		every time.Duration
		open  uint64
		ends  bool
		want  FindingState
	}{
		"it hoards":                     {ReadEvery, 0, false, Violated},
		"readings without time between": {ReadEvery / 50, 0, false, Held},
		"a little late":                 {ReadEvery / 2, 0, false, Violated},
		"connections explain it":        {ReadEvery, 1000, false, Held},
		"it hoarded and ended":          {ReadEvery, 0, true, Violated},
	} {
		c, _ := two()
		for i := range 20 {
			open := uint64(0)
			if i == 10 {
				open = tt.open
			}
			read(c, tt.every, 100*i, true, open)
		}
		if tt.ends {
			read(c, tt.every, 0, false, 0)
		}
		if f := c.hoards(); f.State != tt.want {
			t.Errorf("%s: %+v, want %s", name, f, tt.want)
		}
	}
	c, now := two()
	for _, r := range []*Reading{c.first(), now} {
		s := r.Sides[2]
		s.Alive = false
		r.Sides[2] = s
	}
	c.readings = c.readings[:1]
	if f := c.hoards(); f.State != Unjudged {
		t.Errorf("never seen alive: %+v", f)
	}
}
