package testnet

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
)

// Route sends what is for a network through one of the gateways, which have
// addresses on the host's links; a flow stays with its gateway by the hash of its
// addresses and ports, which is the same in every run where the kernel lets it be
// chosen (Linux 6.11). It takes the place of the route that was there. No
// gateways: there is no route.
func (h *Host) Route(network string, gateways ...netip.Addr) error {
	_, to, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	return h.Do(func() error {
		if len(gateways) == 0 {
			return netlink.RouteDel(&netlink.Route{Dst: to})
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/fib_multipath_hash_policy", []byte("1"), 0); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/fib_multipath_hash_seed", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		route := &netlink.Route{Dst: to}
		if len(gateways) == 1 {
			route.Gw = gateways[0].AsSlice()
		}
		for _, gw := range gateways {
			if len(gateways) > 1 {
				route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{Gw: gw.AsSlice()})
			}
		}
		return netlink.RouteReplace(route)
	})
}

// Own gives the host's loopback interface another address: one that is reached
// through the host and not looked for on its links.
func (h *Host) Own(addr netip.Addr) error {
	return h.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}})
	})
}

// Unplug takes the host's link down: what it sends and what is sent to it is lost.
func (h *Host) Unplug() error { return h.setLink(netlink.LinkSetDown) }

// Plug brings the link back, without the routes through others that it had, and
// without its IPv6 address.
func (h *Host) Plug() error { return h.setLink(netlink.LinkSetUp) }

func (h *Host) setLink(set func(netlink.Link) error) error {
	return h.Do(func() error {
		link, err := netlink.LinkByName(Interface)
		if err != nil {
			return err
		}
		return set(link)
	})
}
