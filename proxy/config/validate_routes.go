package config

import (
	"fmt"
	"reflect"
	"strings"
)

func (v validator) upstreams() names {
	const path = "upstreams"
	us := v.c.Upstreams
	for i, u := range us {
		at := item(path, i)
		if len(u.Endpoints) == 0 {
			v.add(at+".endpoints", "there is none", `write ["127.0.0.1:9001"]`)
		}
		for j, e := range u.Endpoints {
			if !isEndpoint(e) {
				v.add(item(at+".endpoints", j), quote(e)+" is no host:port", `write it as "127.0.0.1:9001"`)
			}
		}
		choice(v, at+".protocol", "protocol", u.Protocol, upstreamProtocols, nil)
		v.notNegative(at+".max_idle", u.MaxIdle)
		v.notNegative(at+".max_connections", u.MaxConnections)
	}
	return v.names(path, len(us), func(i int) string { return us[i].Name })
}

func (v validator) routes(listeners, upstreams names) {
	const path = "routes"
	rs := v.c.Routes
	v.names(path, len(rs), func(i int) string { return rs[i].Name })

	served := make([]int, len(v.c.Listeners)) // 1 + the first route of each
	complete := !v.isRefused(path)            // whether each route says what it serves
	for i, r := range rs {
		at := item(path, i)
		complete = complete && !v.isRefused(at+".listeners")
		v.routeListeners(at, i, r, listeners, served)
		v.match(at+".match", r.Match)
		v.backends(at+".upstreams", r.Upstreams, upstreams)
	}
	for i, l := range v.c.Listeners {
		if served[i] == 0 && complete && listeners.complete {
			v.add(item("listeners", i), fmt.Sprintf("no route serves listener %s", show(l.Name)), "name it in the listeners of a route")
		}
	}
}

// routeListeners checks what a route serves, and notes it in served.
func (v validator) routeListeners(path string, route int, r Route, known names, served []int) {
	at := path + ".listeners"
	if len(r.Listeners) == 0 {
		v.add(at, "there is none", "name the listeners that the route serves")
	}
	var http, raw string  // a listener of HTTP, and one of tcp or udp
	var protocol Protocol // of raw
	seen := make(map[string]bool, len(r.Listeners))
	for j, name := range r.Listeners {
		ref := item(at, j)
		i, ok := v.find(ref, "listener", name, known)
		if !ok {
			continue
		}
		if seen[name] {
			v.add(ref, quote(name)+" is named twice", "name it once")
			continue
		}
		seen[name] = true
		first := served[i]
		if first == 0 {
			served[i] = route + 1
		}
		switch v.c.Listeners[i].Protocol {
		case HTTP, HTTPS:
			http = name
		case TCP, UDP:
			if raw != "" && v.c.Listeners[i].Protocol != protocol {
				v.add(at, fmt.Sprintf("mixes %s (%s) and %s (%s)", protocol, show(raw), v.c.Listeners[i].Protocol, show(name)), "write a route for each")
			}
			raw, protocol = name, v.c.Listeners[i].Protocol
			if first != 0 {
				v.add(ref, fmt.Sprintf("%s listener %s has a route already", protocol, show(name)), v.onLine(item("routes", first-1)))
			}
		}
	}
	switch {
	case http != "" && raw != "":
		v.add(at, fmt.Sprintf("mixes http (%s) and %s (%s)", show(http), protocol, show(raw)), "write a route for each")
	case raw != "":
		if !reflect.ValueOf(r.Match).IsZero() {
			v.add(path+".match", fmt.Sprintf("%s listener %s has nothing to match", protocol, show(raw)), "leave it out")
		}
		v.httpOnly(path+".timeout", protocol, r.Timeout != 0)
	}
}

func (v validator) match(path string, m Match) {
	for i, h := range m.Hosts {
		if !isHost(strings.TrimPrefix(h, "*.")) {
			v.add(item(path+".hosts", i), quote(h)+" is no host", `write it as example.com or "*.example.com"`)
		}
	}
	if m.Path != "" && m.PathPrefix != "" {
		v.add(path+".path", "is set together with path_prefix", "write one of them")
	}
	v.urlPath(path+".path", m.Path)
	v.urlPath(path+".path_prefix", m.PathPrefix)
}

func (v validator) urlPath(path, value string) {
	if value != "" && value[0] != '/' {
		v.add(path, quote(value)+" does not begin with /", "write "+quote("/"+value))
	}
}

func (v validator) backends(path string, backends []Backend, known names) {
	if len(backends) == 0 {
		v.add(path, "there is none", "write [{name: origin}]")
		return
	}
	total, named := 0, map[string]bool{}
	for i, b := range backends {
		at := item(path, i)
		if b.Name == "" {
			v.add(at+".name", "is missing", "name an upstream")
		} else if _, ok := v.find(at+".name", "upstream", b.Name, known); ok && named[b.Name] {
			v.add(at+".name", quote(b.Name)+" is named twice", "write it once, with the sum of the weights")
		}
		named[b.Name] = true
		v.bounds(at+".weight", *b.Weight, 0, maxWeight)
		if v.isRefused(at + ".weight") {
			total++ // unknown, so that nothing is said about the sum
		}
		total += max(0, *b.Weight)
	}
	if total == 0 {
		v.add(path, "all weights are 0", "give one upstream a weight")
	}
}
