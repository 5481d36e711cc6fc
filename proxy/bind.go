package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
)

// Bind makes the sockets of every listener, for a generation without a
// supervisor. Each listener has one of each kind, whatever its workers: without steering a
// second would only split the accept queue.
func (g *Generation) Bind() (contract.Passed, error) {
	sockets := contract.Passed{TCP: make(map[string][]net.Listener), UDP: make(map[string][]*net.UDPConn)}
	var errs []error
	for _, l := range g.cfg.Listeners {
		if err := bind(l, sockets); err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", l.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		sockets.Close()
		return contract.Passed{}, err
	}
	return sockets, nil
}

func bind(l config.Listener, into contract.Passed) error {
	// Package net makes a tcp6 socket IPv6 only, and a tcp one on [::] both.
	family := ""
	if l.AddrPort().Addr().Is6() && !l.DualStack {
		family = "6"
	}
	var lc net.ListenConfig
	// An MPTCP socket, Go's default, takes no part in a reuseport group with a program.
	lc.SetMultipathTCP(false)
	address := l.Address
	if l.Protocol.HasStreams() {
		ln, err := lc.Listen(context.Background(), "tcp"+family, address)
		if err != nil {
			return err
		}
		into.TCP[l.Name] = []net.Listener{ln}
		address = ln.Addr().String() // of both the same port, where the file says 0
	}
	if !l.HasDatagrams() {
		return nil
	}
	c, err := lc.ListenPacket(context.Background(), "udp"+family, address)
	if err != nil {
		return err
	}
	into.UDP[l.Name] = []*net.UDPConn{c.(*net.UDPConn)}
	return nil
}
