// Package router finds the route of a request.
//
// Of the routes whose conditions all hold, the one with the longest matching
// host wins, then the one with the longest matching path, then the first in the
// file. A Table is compiled once and never changes; a lookup allocates nothing
// unless the request spells its host or path unusually.
package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/upstream"
)

// Route is where the requests that match go.
type Route struct {
	Name    string
	Index   int           // among the configuration's routes
	Timeout time.Duration // until the response's head; 0 means none

	// draw draws below n, evenly. Tests replace it.
	draw     func(n int) int
	backends []backend
	total    int // sum of weights
}

type backend struct {
	upstream *upstream.Upstream
	upTo     int // sum of the weights up to and with this one
}

// Pick draws an upstream by weight. It is nil if no backend has any weight.
func (r *Route) Pick() *upstream.Upstream {
	switch {
	case r.total == 0:
		return nil
	case len(r.backends) == 1:
		return r.backends[0].upstream
	}
	n := r.draw(r.total)
	for _, b := range r.backends {
		if n < b.upTo {
			return b.upstream
		}
	}
	return nil
}

// Table holds the routes of one listener.
type Table struct {
	exact    map[string]*paths // by host
	wildcard map[string]*paths // by what follows "*."
	any      *paths
}

// paths holds the routes of one host. The first in the file is kept where two
// would match alike.
type paths struct {
	exact  map[string]*Route
	prefix map[string]*Route // without a trailing slash; "" matches everything
}

// New compiles the routes of the named listener.
func New(listener string, routes []config.Route, upstreams map[string]*upstream.Upstream) (*Table, error) {
	t := &Table{exact: make(map[string]*paths), wildcard: make(map[string]*paths), any: newPaths()}
	var errs []error
	for i, cfg := range routes {
		if !slices.Contains(cfg.Listeners, listener) {
			continue
		}
		route, err := newRoute(i, cfg, upstreams)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(cfg.Match.Hosts) == 0 {
			t.any.add(cfg.Match, route)
		}
		for _, host := range cfg.Match.Hosts {
			byHost := t.exact
			if rest, ok := strings.CutPrefix(host, "*."); ok {
				byHost, host = t.wildcard, rest
			}
			host = strings.ToLower(host)
			if byHost[host] == nil {
				byHost[host] = newPaths()
			}
			byHost[host].add(cfg.Match, route)
		}
	}
	return t, errors.Join(errs...)
}

func newRoute(index int, cfg config.Route, upstreams map[string]*upstream.Upstream) (*Route, error) {
	r := &Route{Name: cfg.Name, Index: index, Timeout: cfg.Timeout, draw: rand.IntN}
	for _, b := range cfg.Upstreams {
		u := upstreams[b.Name]
		if u == nil {
			return nil, fmt.Errorf("route %s: no upstream is named %s", cfg.Name, b.Name)
		}
		weight := 1
		if b.Weight != nil {
			weight = *b.Weight
		}
		if weight == 0 {
			continue
		}
		r.total += weight
		r.backends = append(r.backends, backend{upstream: u, upTo: r.total})
	}
	return r, nil
}

func newPaths() *paths {
	return &paths{exact: make(map[string]*Route), prefix: make(map[string]*Route)}
}

func (p *paths) add(match config.Match, route *Route) {
	byPath, key := p.prefix, strings.TrimRight(match.PathPrefix, "/")
	if match.Path != "" {
		byPath, key = p.exact, match.Path
	}
	if byPath[key] == nil {
		byPath[key] = route
	}
}

// First is the route of a stream, which has neither host nor path.
func (t *Table) First() *Route { return t.any.prefix[""] }

// Lookup finds the route of a request by the value of its Host field and its
// decoded path, or nil. The path is matched as the upstream may understand it,
// without "." and "..", so that no spelling reaches a route's upstream by
// another route.
func (t *Table) Lookup(host, urlPath string) *Route {
	host, urlPath = bareHost(host), cleanPath(urlPath)
	if p := t.exact[host]; p != nil {
		if r := p.lookup(urlPath); r != nil {
			return r
		}
	}
	// From the longest suffix to the shortest: "*." stands for one label or more.
	for rest := host; len(t.wildcard) > 0; {
		_, after, found := strings.Cut(rest, ".")
		if !found {
			break
		}
		rest = after
		if p := t.wildcard[rest]; p != nil {
			if r := p.lookup(urlPath); r != nil {
				return r
			}
		}
	}
	return t.any.lookup(urlPath)
}

func (p *paths) lookup(urlPath string) *Route {
	if r := p.exact[urlPath]; r != nil {
		return r
	}
	for prefix := strings.TrimRight(urlPath, "/"); ; {
		if r := p.prefix[prefix]; r != nil {
			return r
		}
		// Each prefix ends before a slash, so "/api" does not match "/apiary".
		i := strings.LastIndexByte(prefix, '/')
		if i < 0 {
			return p.prefix[""] // "*" of OPTIONS has no slash
		}
		prefix = prefix[:i]
	}
}

// bareHost is host in lower case, without port and final dot.
func bareHost(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// cleanPath removes dot segments and doubled slashes, and keeps a final slash.
func cleanPath(p string) string {
	if !strings.Contains(p, "/.") && !strings.Contains(p, "//") {
		return p
	}
	clean := path.Clean(p)
	if p[len(p)-1] == '/' && clean != "/" {
		clean += "/"
	}
	return clean
}
