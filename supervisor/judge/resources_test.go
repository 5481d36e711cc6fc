package judge

import (
	"strings"
	"testing"
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
		"always near the limit":          {[]Resources{{Descriptors: 80, Limit: 100}, {Descriptors: 95, Limit: 100}}, 1000, ""},
	} {
		if got := leaking(tt.seen, tt.peak); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
