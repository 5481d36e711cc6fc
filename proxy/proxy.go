// Package proxy is one generation: it accepts connections, routes their
// requests to upstreams, and when told to stop finishes what it has.
//
// A generation never changes. What a connection meets is decided by the
// configuration the generation was made of, until the connection ends.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/proxy/router"
	"github.com/baton-mesh/baton/proxy/upstream"
)

// Options are what a generation is made of besides its configuration.
type Options struct {
	// Generation is the number that probes are answered with.
	Generation uint64
	// Log defaults to nothing.
	Log *slog.Logger
	// Keys are shared with the generations before and after, so that a client
	// may resume with this one what it began with another. Nil means keys of
	// its own. Stays the caller's, who keeps it until Run has returned.
	Keys *keys.Reader
	// Ledger gets the account of every connection and request. Nil keeps none.
	// Stays the caller's, and open: a request that Run has cut may still end.
	Ledger *ledger.Writer
	// Notify tells the supervisor how far the generation is. Defaults to nobody.
	Notify func(state ...string) error
}

// Generation is one run of the proxy.
type Generation struct {
	opts      Options
	cfg       *config.Config
	registry  *listener.Registry
	upstreams map[string]*upstream.Upstream
	tables    map[string]*router.Table // by listener
	routes    []uint16                 // their numbers in the ledger, by Route.Index
	servers   []*listener.Server
	draining  atomic.Bool
}

// New builds everything that can be built without a socket. What it accepts
// can fail in Run for want of resources only.
func New(cfg *config.Config, opts Options) (*Generation, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Notify == nil {
		opts.Notify = func(...string) error { return nil }
	}
	g := &Generation{
		opts:      opts,
		cfg:       cfg,
		registry:  listener.NewRegistry(),
		upstreams: make(map[string]*upstream.Upstream),
		tables:    make(map[string]*router.Table),
	}
	for _, l := range cfg.Listeners {
		if _, ok := opts.Ledger.Listener(l.Name); !ok {
			opts.Log.Warn("the ledger is not made for this configuration: none is kept", "listener", l.Name)
			g.opts.Ledger = nil
		}
	}
	g.registry.Ledger = g.opts.Ledger
	for _, r := range cfg.Routes {
		g.routes = append(g.routes, g.opts.Ledger.Route(r.Name))
	}
	var errs []error
	for _, u := range cfg.Upstreams {
		if len(u.Endpoints) == 0 {
			errs = append(errs, fmt.Errorf("upstream %s: no endpoints", u.Name))
			continue
		}
		g.upstreams[u.Name] = upstream.New(u)
	}
	for _, l := range cfg.Listeners {
		table, err := router.New(l.Name, cfg.Routes, g.upstreams)
		switch {
		case err != nil:
			errs = append(errs, err)
		case l.Protocol == config.TCP && table.First() == nil:
			errs = append(errs, fmt.Errorf("listener %s: no route takes its streams", l.Name))
		case l.Protocol != config.TCP && !l.Protocol.IsHTTP():
			errs = append(errs, fmt.Errorf("listener %s: protocol %s is not known", l.Name, l.Protocol))
		}
		g.tables[l.Name] = table
	}
	return g, errors.Join(errs...)
}

// Listen takes the sockets of each listener of the configuration, by name. It
// owns them from now on, also when it fails: then they are closed.
func (g *Generation) Listen(sockets map[string][]net.Listener) error {
	var errs []error
	for _, l := range g.cfg.Listeners {
		workers := sockets[l.Name]
		if len(workers) == 0 {
			errs = append(errs, fmt.Errorf("listener %s: no socket was passed", l.Name))
			continue
		}
		server, err := g.newServer(l, workers)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.servers = append(g.servers, server)
	}
	for name := range sockets {
		// Nobody would accept what the kernel queues there.
		if g.tables[name] == nil {
			errs = append(errs, fmt.Errorf("listener %s: a socket was passed, but the configuration has no such listener", name))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		for _, workers := range sockets {
			for _, ln := range workers {
				ln.Close()
			}
		}
	}
	return err
}

func (g *Generation) newServer(l config.Listener, workers []net.Listener) (*listener.Server, error) {
	table := g.tables[l.Name]
	if l.Protocol == config.TCP {
		route := table.First()
		dial := func(ctx context.Context) (*net.TCPConn, func(), error) {
			u := route.Pick()
			if u == nil {
				return nil, nil, fmt.Errorf("route %s: no upstream has any weight", route.Name)
			}
			conn, endpoint, err := u.Dial(ctx)
			if err != nil {
				return nil, nil, fmt.Errorf("route %s: upstream %s: %w", route.Name, u.Name, err)
			}
			return conn, endpoint.Release, nil
		}
		return listener.NewTCP(l, workers, g.registry, g.routes[route.Index], dial, g.opts.Log)
	}
	return listener.NewHTTP(l, workers, g.registry, g.opts.Keys, newHandler(g, l, table), g.opts.Log)
}

// Counts says what the open connections are doing.
func (g *Generation) Counts() listener.Counts { return g.registry.Counts() }

// lastCallWindow bounds the time over which clients are told to go.
const lastCallWindow = 5 * time.Second

// window is the time over which clients are told to go, at first and at the last
// call: a tenth of what the drain was given, since the last call comes on top.
func (g *Generation) window() time.Duration {
	return min(lastCallWindow, g.cfg.Release.DrainTimeout/10)
}
