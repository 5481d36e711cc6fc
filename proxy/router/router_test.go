package router

import (
	"testing"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/upstream"
)

var origin = map[string]*upstream.Upstream{
	"origin": upstream.New(config.Upstream{Name: "origin", Endpoints: []string{"127.0.0.1:1"}}),
	"canary": upstream.New(config.Upstream{Name: "canary", Endpoints: []string{"127.0.0.1:2"}}),
}

func route(name string, match config.Match) config.Route {
	return config.Route{Name: name, Listeners: []string{"web"}, Match: match, Upstreams: []config.Backend{{Name: "origin"}}}
}

func table(t testing.TB, routes ...config.Route) *Table {
	t.Helper()
	table, err := New("web", routes, origin)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func hosts(h ...string) config.Match { return config.Match{Hosts: h} }

func TestLookup(t *testing.T) {
	other := route("other listener", config.Match{})
	other.Listeners = []string{"edge"}
	all := table(t,
		other,
		route("a /api", config.Match{Hosts: []string{"a.example"}, PathPrefix: "/api"}),
		route("a /api again", config.Match{Hosts: []string{"a.example"}, PathPrefix: "/api/"}),
		route("a /api/v1", config.Match{Hosts: []string{"a.example"}, PathPrefix: "/api/v1/"}),
		route("a =/api/v1/x", config.Match{Hosts: []string{"a.example"}, Path: "/api/v1/x"}),
		route("*", hosts("*.example")),
		route("*.b", hosts("*.b.example")),
		route("b", hosts("B.Example", "c.example")),
		route("v6", hosts("[::1]")),
		route("admin", config.Match{PathPrefix: "/admin"}),
		route("=/", config.Match{Path: "/"}),
	)
	tests := []struct{ host, path, want string }{
		{"a.example", "/api", "a /api"},
		{"a.example", "/api/", "a /api"},
		{"a.example", "/api/x", "a /api"},
		{"a.example", "/apix", "*"}, // segments, not characters
		{"a.example", "/api/v1", "a /api/v1"},
		{"a.example", "/api/v1/y/z", "a /api/v1"},
		{"a.example", "/api/v1/x", "a =/api/v1/x"},
		{"a.example", "/api/v1/x/", "a /api/v1"},
		{"a.example", "/", "*"}, // no route of the exact host has this path
		{"A.EXAMPLE:8080", "/api", "a /api"},
		{"a.example.", "/api", "a /api"},
		{"b.example", "/x", "b"},
		{"c.example", "/x", "b"},
		{"x.b.example", "/x", "*.b"},
		{"y.x.b.example", "/x", "*.b"},
		{"example", "/admin", "admin"}, // "*." stands for one label at least
		{"[::1]:8080", "/", "v6"},
		{"[::1]", "/", "v6"},
		{"d.test", "/", "=/"},
		{"d.test", "/x", ""},
		{"", "/admin", "admin"},
		{"d.test", "*", ""},
		{"d.test", "", ""},
		// Spellings that an upstream would understand as another path.
		{"d.test", "/x/../admin", "admin"},
		{"d.test", "//admin", "admin"},
		{"d.test", "/./admin/", "admin"},
		{"d.test", "/admin/../x", ""},
		{"d.test", "/../..", "=/"},
	}
	for _, test := range tests {
		got := ""
		if r := all.Lookup(test.host, test.path); r != nil {
			got = r.Name
		}
		if got != test.want {
			t.Errorf("%s%s goes to %q, want %q", test.host, test.path, got, test.want)
		}
	}
}

func TestTheFirstInTheFileWins(t *testing.T) {
	table := table(t, route("first", config.Match{PathPrefix: "/"}), route("second", config.Match{}))
	if got := table.Lookup("a", "/").Name; got != "first" || table.First().Name != "first" {
		t.Errorf("%s; a stream: %s", got, table.First().Name)
	}
}

func TestUnknownUpstream(t *testing.T) {
	r := route("r", config.Match{})
	r.Upstreams = []config.Backend{{Name: "nobody"}}
	if _, err := New("web", []config.Route{r}, origin); err == nil {
		t.Error("accepted")
	}
}

func TestPickFollowsTheWeights(t *testing.T) {
	weight := func(n int) *int { return &n }
	tests := []struct {
		origin, canary *int
		want           int // of the draws that go to canary
		of             int
	}{
		{nil, nil, 1, 2},
		{weight(9), nil, 1, 10},
		{weight(0), weight(3), 3, 3},
		{weight(1), weight(0), 0, 1},
	}
	for _, test := range tests {
		r := route("r", config.Match{})
		r.Upstreams = []config.Backend{{Name: "origin", Weight: test.origin}, {Name: "canary", Weight: test.canary}}
		picked := table(t, r).First()
		canary := 0
		for i := range test.of {
			picked.draw = func(n int) int {
				if n != test.of {
					t.Errorf("drawn below %d, want %d", n, test.of)
				}
				return i
			}
			if picked.Pick() == origin["canary"] {
				canary++
			}
		}
		if canary != test.want {
			t.Errorf("%d of %d went to canary, want %d", canary, test.of, test.want)
		}
	}
	r := route("r", config.Match{})
	r.Upstreams[0].Weight = weight(0)
	if table(t, r).First().Pick() != nil {
		t.Error("an upstream without weight was picked")
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	table := benchmarkTable(t)
	if n := testing.AllocsPerRun(100, func() { table.Lookup("x.h7.example:8080", "/api/v1/users/42") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func benchmarkTable(t testing.TB) *Table {
	var routes []config.Route
	for _, c := range "0123456789" {
		for _, d := range "0123456789" {
			host := "h" + string(c) + string(d) + ".example"
			routes = append(routes, route(host, config.Match{Hosts: []string{host, "*.h" + string(c) + ".example"}, PathPrefix: "/api"}))
		}
	}
	return table(t, routes...)
}

func BenchmarkLookup(b *testing.B) {
	table := benchmarkTable(b)
	for name, host := range map[string]string{"exact": "h42.example:8080", "wildcard": "x.y.h4.example"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if table.Lookup(host, "/api/v1/users/42").Pick() == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}
