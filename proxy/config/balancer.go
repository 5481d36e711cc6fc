package config

import (
	"net/netip"
	"time"
)

// Balancer is the XDP program in front of nodes, which picks the node for each
// packet of its VIPs. Without this key there is none.
type Balancer struct {
	// Interfaces are where packets for the VIPs come in.
	Interfaces []string `mapstructure:"interfaces" yaml:"interfaces" jsonschema:"required,minItems=1"`
	// XDPMode is native or generic. Generic works on any interface, slowly.
	XDPMode XDPMode `mapstructure:"xdp_mode" yaml:"xdp_mode"`
	// Forwarding is how a packet gets to its real: l2 gives the frame the real's
	// MAC address and changes nothing else.
	Forwarding Forwarding `mapstructure:"forwarding" yaml:"forwarding"`
	// Reals are the nodes behind the VIPs.
	Reals []Real `mapstructure:"reals" yaml:"reals" jsonschema:"required,minItems=1,maxItems=4095"`
	// VIPs are what clients connect to.
	VIPs []VIP `mapstructure:"vips" yaml:"vips" jsonschema:"required,minItems=1,maxItems=4096"`
	// Health is how reals are checked.
	Health Health `mapstructure:"health" yaml:"health"`
}

// XDPMode is where in the kernel the balancer's program runs.
type XDPMode string

// The modes of XDP.
const (
	XDPNative  XDPMode = "native"  // in the driver
	XDPGeneric XDPMode = "generic" // after the driver has made an skb
)

// Forwarding is how a packet gets from the balancer to its real.
type Forwarding string

// The ways to forward.
const (
	ForwardL2   Forwarding = "l2"
	ForwardIPIP Forwarding = "ipip" // not built yet
	ForwardGUE  Forwarding = "gue"  // not built yet
)

// Real is a node behind VIPs.
type Real struct {
	// Name is unique among reals.
	Name string `mapstructure:"name" yaml:"name" jsonschema:"required"`
	// Address is the node's own IP, on a link of the balancer. With it the real is
	// checked, its MAC address found, and its part of the hash table chosen.
	Address string `mapstructure:"address" yaml:"address" jsonschema:"required"`
	// ServerID is the node's node.server_id, which connection IDs and TCP options
	// name. 0 means that nothing names it.
	ServerID uint32 `mapstructure:"server_id" yaml:"server_id" jsonschema:"minimum=0,maximum=4294967295"`
	// Weight is its share of new flows relative to the other reals. Defaults to 1; 0 means none.
	Weight *int `mapstructure:"weight" yaml:"weight" jsonschema:"minimum=0,maximum=65535"`
}

// Addr is the real's address as [Parse] has accepted it.
func (r Real) Addr() netip.Addr {
	addr, _ := netip.ParseAddr(r.Address)
	return addr
}

// VIP is an address that clients connect to and that reals serve.
type VIP struct {
	// Address is an IP.
	Address string `mapstructure:"address" yaml:"address" jsonschema:"required"`
	// Port is the one port served. 0 means every port that no other VIP of the
	// address names.
	Port int `mapstructure:"port" yaml:"port" jsonschema:"minimum=0,maximum=65535"`
	// Protocols are tcp and udp, or one of them.
	Protocols []Protocol `mapstructure:"protocols" yaml:"protocols"`
	// QUIC reads the connection IDs of what comes by UDP.
	QUIC bool `mapstructure:"quic" yaml:"quic"`
	// KatranIDs reads connection IDs in the forms of Katran too, versions 1 to 3. Needs quic.
	KatranIDs bool `mapstructure:"katran_ids" yaml:"katran_ids"`
	// Reals are the names of those that serve it; none means all.
	Reals []string `mapstructure:"reals" yaml:"reals"`
}

// Addr is the VIP's address as [Parse] has accepted it.
func (v VIP) Addr() netip.Addr {
	addr, _ := netip.ParseAddr(v.Address)
	return addr
}

// Health is how the reals of a balancer are checked.
type Health struct {
	// TCPPort is what a check connects to, at the real's own address. 0 means that
	// nothing is checked, and every real counts as healthy.
	TCPPort int `mapstructure:"tcp_port" yaml:"tcp_port" jsonschema:"minimum=0,maximum=65535"`
	// HTTPPath makes the check ask for this path by HTTP: an answer of 200 to 299
	// passes. Empty means that a connection is enough.
	HTTPPath string `mapstructure:"http_path" yaml:"http_path"`
	// Interval is the time between two checks of a real.
	Interval time.Duration `mapstructure:"interval" yaml:"interval"`
	// Timeout bounds one check.
	Timeout time.Duration `mapstructure:"timeout" yaml:"timeout"`
	// Fall is how many checks in a row must fail before a real gets no new flows.
	Fall int `mapstructure:"fall" yaml:"fall" jsonschema:"minimum=1,maximum=100"`
	// Rise is how many checks in a row must pass before it gets them again.
	Rise int `mapstructure:"rise" yaml:"rise" jsonschema:"minimum=1,maximum=100"`
	// SlowStart is how long a real that has come back takes to reach its weight, in
	// ten steps. 0s means at once.
	SlowStart time.Duration `mapstructure:"slow_start" yaml:"slow_start"`
}

// defaultBalancer is what the absent keys of a balancer mean.
func defaultBalancer() Balancer {
	return Balancer{
		XDPMode: XDPNative, Forwarding: ForwardL2,
		Health: Health{Interval: time.Second, Timeout: time.Second, Fall: 3, Rise: 2},
	}
}

// fillBalancer gives a balancer that is in the file its defaults.
func fillBalancer(settings map[string]any) {
	b, ok := settings["balancer"].(map[string]any)
	if !ok {
		return
	}
	defaults := settingsOf(defaultBalancer())
	for _, list := range []string{"interfaces", "reals", "vips"} {
		delete(defaults, list)
	}
	fill(b, defaults)
	if health, ok := b["health"].(map[string]any); ok {
		fill(health, defaults["health"].(map[string]any))
	}
	for _, r := range elements(b, "reals") {
		fill(r, map[string]any{"weight": 1})
	}
	for _, v := range elements(b, "vips") {
		fill(v, map[string]any{"protocols": []any{string(TCP), string(UDP)}})
	}
}
