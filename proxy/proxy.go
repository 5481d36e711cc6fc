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
	"slices"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/h3"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
	"github.com/baton-mesh/baton/proxy/router"
	"github.com/baton-mesh/baton/proxy/udp"
	"github.com/baton-mesh/baton/proxy/upstream"
	"github.com/baton-mesh/baton/quicid"
)

// Options are what a generation is made of besides its configuration.
type Options struct {
	// Generation is the number that probes are answered with.
	Generation uint64
	// ServerID and Slot are written into the connection IDs of QUIC, so that its
	// packets are steered by them. 0 and 0 without a supervisor: then they name nobody.
	ServerID uint32
	Slot     uint8
	// Log defaults to nothing.
	Log *slog.Logger
	// Keys are shared with the generations before and after, so that a client
	// may resume with this one what it began with another. Nil means keys of
	// its own. Stays the caller's, who keeps it until Run has returned.
	Keys *keys.Reader
	// Ledger gets the account of every connection and request. Nil keeps none.
	// Stays the caller's, and open: a request that Run has cut may still end.
	Ledger *ledger.Writer
	// Notify tells the supervisor how far the generation is, and may wait until the
	// context is done. Defaults to nobody.
	Notify func(ctx context.Context, state ...string) error
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
	datagrams []datagramServer
	draining  atomic.Bool
}

// New builds everything that can be built without a socket. What it accepts
// can fail in Run for want of resources only.
func New(cfg *config.Config, opts Options) (*Generation, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Notify == nil {
		opts.Notify = func(context.Context, ...string) error { return nil }
	}
	g := &Generation{
		opts:      opts,
		cfg:       cfg,
		registry:  listener.NewRegistry(),
		upstreams: make(map[string]*upstream.Upstream),
		tables:    make(map[string]*router.Table),
	}
	for _, l := range cfg.Listeners {
		_, streams := opts.Ledger.Listener(l.Name)
		_, datagrams := opts.Ledger.Listener(l.Name + contract.UDPSuffix)
		if l.Protocol.HasStreams() && !streams || l.HasDatagrams() && !datagrams {
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
		case !l.Protocol.IsHTTP() && table.First() == nil:
			errs = append(errs, fmt.Errorf("listener %s: no route takes what comes to it", l.Name))
		case l.Protocol != config.TCP && l.Protocol != config.UDP && !l.Protocol.IsHTTP():
			errs = append(errs, fmt.Errorf("listener %s: protocol %s is not known", l.Name, l.Protocol))
		}
		g.tables[l.Name] = table
	}
	return g, errors.Join(errs...)
}

// Listen takes the sockets of each listener of the configuration, by name. It
// owns them from now on, also when it fails: then they are closed.
func (g *Generation) Listen(sockets contract.Passed) error {
	var errs []error
	for _, l := range g.cfg.Listeners {
		errs = append(errs, g.listen(l, sockets))
	}
	// Nobody would take what the kernel queues on any other.
	for name := range sockets.TCP {
		if g.tables[name] == nil {
			errs = append(errs, fmt.Errorf("listener %s: a socket was passed, but the configuration has no such listener", name))
		}
	}
	for name := range sockets.UDP {
		if !slices.ContainsFunc(g.cfg.Listeners, func(l config.Listener) bool { return l.Name == name && l.HasDatagrams() }) {
			errs = append(errs, fmt.Errorf("listener %s: a UDP socket was passed, but it serves no datagrams", name))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		sockets.Close()
	}
	return err
}

func (g *Generation) listen(l config.Listener, sockets contract.Passed) error {
	streams, datagrams := sockets.TCP[l.Name], sockets.UDP[l.Name]
	if l.Protocol.HasStreams() {
		if len(streams) == 0 {
			return fmt.Errorf("listener %s: no socket was passed", l.Name)
		}
		server, err := g.newServer(l, streams)
		if err != nil {
			return err
		}
		g.servers = append(g.servers, server)
	}
	switch {
	case !l.HasDatagrams():
	case len(datagrams) == 0:
		return fmt.Errorf("listener %s: no UDP socket was passed", l.Name)
	case l.Protocol == config.UDP:
		g.datagrams = append(g.datagrams, g.newUDP(l, datagrams))
	default:
		server, err := g.newHTTP3(l, datagrams)
		if err != nil {
			return err
		}
		g.datagrams = append(g.datagrams, server)
	}
	return nil
}

func (g *Generation) newUDP(l config.Listener, workers []*net.UDPConn) *udp.Server {
	route := g.tables[l.Name].First()
	dial := func(ctx context.Context) (*net.UDPConn, func(), error) {
		u := route.Pick()
		if u == nil {
			return nil, nil, fmt.Errorf("route %s: no upstream has any weight", route.Name)
		}
		conn, endpoint, err := u.DialUDP(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("route %s: upstream %s: %w", route.Name, u.Name, err)
		}
		return conn, endpoint.Release, nil
	}
	return udp.New(l, workers, dial, udp.Account{Ledger: g.opts.Ledger, Route: g.routes[route.Index]}, g.opts.Log)
}

func (g *Generation) newHTTP3(l config.Listener, workers []*net.UDPConn) (*h3.Server, error) {
	secure, err := listener.NewSecure(l.TLS, g.opts.Keys, http3.NextProtoH3)
	if err != nil {
		return nil, fmt.Errorf("listener %s: %w", l.Name, err)
	}
	o := h3.Options{
		Listener: l,
		Owner:    quicid.ID{ServerID: g.opts.ServerID, Slot: g.opts.Slot},
		Keys:     g.opts.Keys,
		TLS:      secure.Config,
		Ledger:   g.opts.Ledger,
		Handler:  newHandler(g, l, g.tables[l.Name]),
		Log:      g.opts.Log,
	}
	if g.opts.Keys != nil {
		if shared, ok := g.opts.Keys.QUIC(); ok {
			o.TokenKey, o.ResetKey = (*quic.TokenGeneratorKey)(&shared.Token), (*quic.StatelessResetKey)(&shared.Reset)
		}
	}
	return h3.New(workers, o)
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
func (g *Generation) Counts() (sum listener.Counts) {
	for _, f := range g.flows() {
		for state, n := range f.Counts() {
			sum[state] += n
		}
	}
	return sum
}

// flows are connections of one kind, as a drain sees them.
type flows interface {
	// Drain asks clients to go, within the window. It returns at once.
	Drain(window time.Duration)
	// Empty is closed when none is left and none can come.
	Empty() <-chan struct{}
	Counts() listener.Counts
	// LastCall ends what is left, within about the window, and returns then.
	LastCall(window time.Duration)
	Tally() listener.Tally
}

// datagramServer has UDP sockets, which it closes at the last call.
type datagramServer interface {
	flows
	Start()
}

func (g *Generation) flows() []flows {
	all := []flows{g.registry}
	for _, s := range g.datagrams {
		all = append(all, s)
	}
	return all
}

// lastCallWindow bounds the time over which clients are told to go.
const lastCallWindow = 5 * time.Second

// window is the time over which clients are told to go, at first and at the last
// call: a tenth of what the drain was given, since the last call comes on top.
func (g *Generation) window() time.Duration {
	return min(lastCallWindow, g.cfg.Release.DrainTimeout/10)
}
