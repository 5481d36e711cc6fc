package steer

import (
	"slices"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
)

// A listener of the node is an address of TCP or UDP: two names for it are one
// listener, and one name that moves is two. It is open as long as somebody in the
// shift serves it; a client that comes before or after is refused by the steering
// program, and no sink keeps it waiting.

// Addresses are the listeners of one configuration.
type Addresses map[reuseport.Address]bool

func addressOf(l config.Listener, udp bool) reuseport.Address {
	return reuseport.Address{AddrPort: l.AddrPort(), DualStack: l.DualStack, UDP: udp}
}

// halves are the listeners of the node that one of a configuration is: false for
// TCP, true for UDP, both where http3 shares the port.
func halves(l config.Listener) (udp []bool) {
	if l.Protocol.HasStreams() {
		udp = append(udp, false)
	}
	if l.HasDatagrams() {
		udp = append(udp, true)
	}
	return udp
}

// AddressesOf are the listeners of a configuration: https with http3 counts as two.
func AddressesOf(c *config.Config) Addresses {
	all := Addresses{}
	for _, l := range c.Listeners {
		for _, udp := range halves(l) {
			all[addressOf(l, udp)] = true
		}
	}
	return all
}

// nameOf is what a listener's sockets are called where they are handed over.
func nameOf(l config.Listener, udp bool) string {
	if udp {
		return l.Name + contract.UDPSuffix
	}
	return l.Name
}

// spokenOn is what is spoken there: http3 beside the https of the same name.
func spokenOn(l config.Listener, udp bool) config.Protocol {
	if udp && l.Protocol != config.UDP {
		return "http3"
	}
	return l.Protocol
}

func served(at reuseport.Address, by []Addresses) bool {
	return slices.ContainsFunc(by, func(one Addresses) bool { return one[at] })
}

// forget is the silence that ends a flow; 0 is QUIC, whose connections end by
// themselves.
func forget(l config.Listener) time.Duration {
	if l.Protocol == config.UDP {
		return l.IdleTimeout
	}
	return 0
}
