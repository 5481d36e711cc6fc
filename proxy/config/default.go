package config

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed example.yaml
var example []byte

// Example is the built-in configuration, with comments: what `baton run`
// serves when it is given no file. It writes every default out.
func Example() []byte { return append([]byte(nil), example...) }

// Default is what an absent key means. It has no listeners, routes or
// upstreams, so it serves nothing by itself.
func Default() *Config {
	c := &Config{
		Node:       Node{Name: "edge-1", ServerID: 42, TCPOption: TCPOption{ByteOrder: NetworkOrder}},
		RuntimeDir: "/run/baton",
		Admin:      Admin{Address: "127.0.0.1:9900"},
		Proxy:      Proxy{Command: []string{"baton-proxy"}, User: "nobody", Nonblocking: true, Baton: true},
		Release: Release{
			ReadyTimeout:   10 * time.Second,
			Ramp:           []Percent{1},
			DrainTimeout:   60 * time.Second,
			MaxGenerations: 16,
			OnInconclusive: Hold,
			Verify:         Verify{Window: 2 * time.Second, MaxErrorRate: 0.2, MinFlows: 10},
		},
		Steering: SteeringAuto,
		Traces:   Traces{MaxReleases: 1000, MaxBytes: 64 << 20, MaxAge: 30 * 24 * time.Hour},
		Shutdown: Shutdown{Lead: 5 * time.Second},
	}
	c.Admin.Socket = adminSocket(c.RuntimeDir)
	return c
}

// adminSocket is where the admin socket lies unless the file says otherwise.
func adminSocket(runtimeDir string) string { return filepath.Join(runtimeDir, "admin.sock") }

// defaultListener is what the absent keys of a listener mean.
func defaultListener(p Protocol) Listener {
	l := Listener{Workers: 1, WorkerChoice: ByHash, Backlog: 4096}
	switch p {
	case TCP:
	case UDP:
		l.IdleTimeout = 30 * time.Second
	default:
		l.HeaderTimeout = 10 * time.Second
		l.IdleTimeout = 75 * time.Second
		l.MaxHeaderBytes = 64 << 10
	}
	return l
}

// defaultUpstream is what the absent keys of an upstream mean.
func defaultUpstream() Upstream {
	return Upstream{Protocol: HTTP1, ConnectTimeout: 3 * time.Second, IdleTimeout: 60 * time.Second, MaxIdle: 256}
}

// settingsOf is a value of this package as the YAML decoder would see it.
func settingsOf(v any) map[string]any {
	var settings map[string]any
	text, err := yaml.Marshal(v)
	if err == nil {
		err = yaml.Unmarshal(text, &settings)
	}
	if err != nil {
		panic(fmt.Sprintf("encode defaults: %v", err)) // only a type that YAML cannot carry
	}
	return settings
}

// fillElements gives the elements of the lists their defaults, which viper,
// whose defaults end at a list, cannot.
func fillElements(settings map[string]any) {
	http, tcp, udp := settingsOf(defaultListener(HTTP)), settingsOf(defaultListener(TCP)), settingsOf(defaultListener(UDP))
	for _, l := range elements(settings, "listeners") {
		switch l["protocol"] {
		case string(TCP):
			fill(l, tcp)
		case string(UDP):
			fill(l, udp)
		default:
			fill(l, http)
		}
	}
	upstream := settingsOf(defaultUpstream())
	for _, u := range elements(settings, "upstreams") {
		fill(u, upstream)
	}
	fillBalancer(settings)
	for _, r := range elements(settings, "routes") {
		for _, b := range elements(r, "upstreams") {
			fill(b, map[string]any{"weight": 1})
		}
	}
}

func elements(settings map[string]any, key string) []map[string]any {
	list, _ := settings[key].([]any)
	elems := make([]map[string]any, 0, len(list))
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			elems = append(elems, m)
		}
	}
	return elems
}

func fill(m, defaults map[string]any) {
	for key, value := range defaults {
		if _, ok := m[key]; !ok {
			m[key] = value
		}
	}
}
