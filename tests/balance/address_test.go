package balance

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/tests/testnet"
)

// An interface gets another MAC address: frames for it are still balanced, and
// reals get them from the new one.
func TestInterfaceGetsAnotherAddress(t *testing.T) {
	l := newLab(t, 2)
	l.start()
	flows := l.flows(10)
	for i := range byte(3) {
		mac := net.HardwareAddr{2, 0, 0, 0, 9, i}
		l.do(l.balancer, func() error {
			link, err := netlink.LinkByName(testnet.Interface)
			if err != nil {
				return err
			}
			return netlink.LinkSetHardwareAddr(link, mac)
		})
		l.do(l.client, func() error {
			link, err := netlink.LinkByName(testnet.Interface)
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_REACHABLE, IP: l.balancer.Addr4.AsSlice(), HardwareAddr: mac,
			})
		})
		l.wantMoving(flows, "")
	}
	l.flows(5)
}
