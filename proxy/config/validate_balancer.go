package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

var (
	xdpModes        = []XDPMode{XDPNative, XDPGeneric}
	forwardings     = []Forwarding{ForwardL2}
	forwardingsSoon = []Forwarding{ForwardIPIP, ForwardGUE}
	vipProtocols    = []Protocol{TCP, UDP}
)

const (
	// What the tables of bpf/xdp hold. Real 0 is nobody.
	maxReals = 4095
	maxVIPs  = 4096

	maxRealWeight = 65535
	maxStreak     = 100 // checks in a row
	// An interface's name has 16 octets in the kernel, the last a zero (IFNAMSIZ).
	maxInterfaceName = 15
)

func (v validator) balancer() {
	b := v.c.Balancer
	if b == nil {
		return
	}
	v.interfaces("balancer.interfaces", b.Interfaces)
	choice(v, "balancer.xdp_mode", "xdp_mode", b.XDPMode, xdpModes, nil)
	choice(v, "balancer.forwarding", "forwarding", b.Forwarding, forwardings, forwardingsSoon)
	v.vips("balancer.vips", b.VIPs, v.reals("balancer.reals", b.Reals))
	v.health("balancer.health", b.Health)
}

func (v validator) interfaces(path string, list []string) {
	if len(list) == 0 {
		v.add(path, "there is none", "write at least one")
	}
	for i, name := range list {
		at := item(path, i)
		switch {
		case name == "" || name == "." || name == ".." || len(name) > maxInterfaceName || strings.ContainsAny(name, "/ \t\n\x00"):
			v.add(at, quote(name)+" is no name of an interface", "ip link lists them")
		case slices.Contains(list[:i], name):
			v.add(at, quote(name)+" is named twice", "name it once")
		}
	}
}

// ip checks an address that packets are sent to.
func (v validator) ip(path, text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	switch {
	case text == "":
		v.add(path, "is missing", `write it as "10.2.0.11"`)
	case err != nil:
		v.add(path, quote(text)+" is no IP address", `write it as "10.2.0.11" or "2001:db8::11"`)
	case addr.Is4In6():
		v.add(path, quote(text)+" is an IPv4 address in IPv6 form", "write "+quote(addr.Unmap().String()))
	case addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "":
		v.add(path, quote(text)+" is not the address of one host", `write it as "10.2.0.11" or "2001:db8::11"`)
	default:
		return addr, true
	}
	return addr, false
}

func (v validator) reals(path string, list []Real) names {
	known := v.names(path, len(list), func(i int) string { return list[i].Name })
	switch {
	case len(list) == 0:
		v.add(path, "there is none", "write at least one")
	case len(list) > maxReals:
		v.add(path, fmt.Sprintf("there are %d", len(list)), fmt.Sprintf("write at most %d", maxReals))
		return known
	}
	addresses, ids := map[netip.Addr]int{}, map[uint32]int{}
	for i, r := range list {
		at := item(path, i)
		if addr, ok := v.ip(at+".address", r.Address); ok {
			if first, taken := addresses[addr]; taken {
				v.add(at+".address", show(r.Address)+" is another real's", v.onLine(item(path, first)))
			} else {
				addresses[addr] = i
			}
		}
		if first, taken := ids[r.ServerID]; taken && r.ServerID != 0 {
			v.add(at+".server_id", fmt.Sprintf("%d is another real's", r.ServerID), v.onLine(item(path, first)))
		} else {
			ids[r.ServerID] = i
		}
		if r.Weight != nil {
			v.bounds(at+".weight", *r.Weight, 0, maxRealWeight)
		}
	}
	return known
}

// served is what no two VIPs may have in common.
type served struct {
	addr     netip.Addr
	port     int
	protocol Protocol
}

func (v validator) vips(path string, list []VIP, reals names) {
	switch {
	case len(list) == 0:
		v.add(path, "there is none", "write at least one")
	case len(list) > maxVIPs:
		v.add(path, fmt.Sprintf("there are %d", len(list)), fmt.Sprintf("write at most %d", maxVIPs))
		return
	}
	before := map[served]int{}
	named := make([]int, len(v.c.Balancer.Reals)) // by which VIP last, counted from 1
	for i, vip := range list {
		at := item(path, i)
		addr, ok := v.ip(at+".address", vip.Address)
		v.bounds(at+".port", vip.Port, 0, 65535)
		if len(vip.Protocols) == 0 {
			v.add(at+".protocols", "is empty", "write [tcp, udp]")
		}
		for j, p := range vip.Protocols {
			where := fmt.Sprintf("%s.protocols[%d]", at, j)
			choice(v, where, "protocol", p, vipProtocols, nil)
			if first, taken := before[served{addr, vip.Port, p}]; ok && taken {
				v.add(where, fmt.Sprintf("%s port %d of %s is served already", p, vip.Port, show(vip.Address)), v.onLine(item(path, first)))
			} else {
				before[served{addr, vip.Port, p}] = i
			}
		}
		if vip.QUIC && !slices.Contains(vip.Protocols, UDP) {
			v.add(at+".quic", "has no meaning without udp", "leave it out, or write protocols: [tcp, udp]")
		}
		if vip.KatranIDs && !vip.QUIC {
			v.add(at+".katran_ids", "has no meaning without quic", "leave it out, or write quic: true")
		}
		for j, name := range vip.Reals {
			if real, ok := reals.index[name]; ok && named[real] != i+1 {
				named[real] = i + 1
				continue
			}
			where := fmt.Sprintf("%s.reals[%d]", at, j)
			if _, ok := v.find(where, "real", name, reals); ok {
				v.add(where, quote(name)+" is named twice", "name it once")
			}
		}
	}
}

func (v validator) health(path string, h Health) {
	v.bounds(path+".tcp_port", h.TCPPort, 0, 65535)
	v.bounds(path+".fall", h.Fall, 1, maxStreak)
	v.bounds(path+".rise", h.Rise, 1, maxStreak)
	if h.Interval == 0 {
		v.add(path+".interval", "is 0", "write it as 1s")
	}
	if h.Timeout == 0 {
		v.add(path+".timeout", "is 0", "write it as 1s")
	}
	switch {
	case h.HTTPPath == "":
	case !strings.HasPrefix(h.HTTPPath, "/") || strings.ContainsAny(h.HTTPPath, " \t\r\n\x00"):
		v.add(path+".http_path", quote(h.HTTPPath)+" is no path", `write it as "/readyz"`)
	case h.TCPPort == 0:
		v.add(path+".http_path", "has no meaning without tcp_port", "name the port that answers")
	}
}
