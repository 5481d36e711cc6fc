package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/baton-mesh/baton/proxy/config"
)

// Bind makes the sockets of every listener, for a generation without a
// supervisor. Each listener has one, whatever its workers: without steering a
// second would only split the accept queue.
func (g *Generation) Bind() (map[string][]net.Listener, error) {
	sockets := make(map[string][]net.Listener)
	var errs []error
	for _, l := range g.cfg.Listeners {
		ln, err := bind(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", l.Name, err))
			continue
		}
		sockets[l.Name] = []net.Listener{ln}
	}
	if err := errors.Join(errs...); err != nil {
		for _, workers := range sockets {
			workers[0].Close()
		}
		return nil, err
	}
	return sockets, nil
}

func bind(l config.Listener) (net.Listener, error) {
	// Package net makes a tcp6 socket IPv6 only, and a tcp one on [::] both.
	network := "tcp"
	if l.AddrPort().Addr().Is6() && !l.DualStack {
		network = "tcp6"
	}
	var lc net.ListenConfig
	// An MPTCP socket, Go's default, takes no part in a reuseport group with a program.
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), network, l.Address)
}
