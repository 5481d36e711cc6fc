package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/scratch"
	"github.com/baton-mesh/baton/tests/testnet"
)

// What the kernel's routes answer about a real whose neighbour is not known, each
// answer of bpf_fib_lookup (enum bpf_fib_lookup_ret) that this program can get, and
// what becomes of the packet.
func TestRoutes(t *testing.T) {
	host, dir := testnet.New(t, "balancer")[0], scratch.Pins(t)
	inHost := func(f func() error) {
		t.Helper()
		if err := host.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	var w *world
	inHost(func() (err error) {
		w, err = newWorld(dir, 1, 1, false)
		return err
	})
	t.Cleanup(func() { w.b.Close() })
	add := func(network string, kind int, encap netlink.Encap) error {
		_, to, err := net.ParseCIDR(network)
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: to, Type: kind, Encap: encap}
		if encap != nil {
			r.LinkIndex = w.eth0
		}
		return netlink.RouteReplace(r)
	}
	var tunnels []string
	inHost(func() error {
		for network, kind := range map[string]int{
			"10.80.1.0/24": unix.RTN_UNREACHABLE, "10.80.2.0/24": unix.RTN_PROHIBIT, "10.80.3.0/24": unix.RTN_THROW,
			"fd80:1::/64": unix.RTN_UNREACHABLE, "fd80:2::/64": unix.RTN_BLACKHOLE, "fd80:3::/64": unix.RTN_THROW,
		} {
			if err := add(network, kind, nil); err != nil {
				return fmt.Errorf("route to %s: %w", network, err)
			}
		}
		for network, addr := range map[string]string{"10.81.0.0/24": "10.81.0.1", "fd81::/64": "fd81::1"} {
			err := add(network, unix.RTN_UNICAST, &netlink.SEG6Encap{Mode: nl.SEG6_IPTUN_MODE_ENCAP, Segments: []net.IP{net.ParseIP("fd77::200")}})
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Logf("this kernel has no routes into tunnels of segments: %s is left out", network)
				continue
			} else if err != nil {
				return fmt.Errorf("route to %s into a tunnel: %w", network, err)
			}
			tunnels = append(tunnels, addr)
		}
		return nil
	})
	cases := []struct {
		name, addr string
		long       bool // longer than the link allows
		counted    string
	}{
		{"SUCCESS", "10.77.0.200", false, "fib"},
		{"SUCCESS", "fd77::200", false, "fib"},
		{"SUCCESS, but a gateway", "10.78.0.1", false, "no_route"},
		{"SUCCESS, but a gateway", "fd78::1", false, "no_route"},
		{"BLACKHOLE", "10.79.0.1", false, "no_route"},
		{"BLACKHOLE", "fd80:2::1", false, "no_route"},
		{"UNREACHABLE", "10.80.1.1", false, "no_route"},
		{"UNREACHABLE", "fd80:1::1", false, "no_route"},
		{"PROHIBIT", "10.80.2.1", false, "no_route"},
		{"PROHIBIT", "fd79::1", false, "no_route"},
		{"NOT_FWDED, to this host", host.Addr4.String(), false, "no_route"},
		{"NOT_FWDED, to this host", host.Addr6.String(), false, "no_route"},
		{"NOT_FWDED, no route", "198.51.100.9", false, "no_route"},
		{"NOT_FWDED, no route", "2001:db8::9", false, "no_route"},
		{"NOT_FWDED, on to another table", "10.80.3.1", false, "no_route"},
		{"NOT_FWDED, on to another table", "fd80:3::1", false, "no_route"},
		{"NO_NEIGH", "10.77.0.201", false, "no_neighbour"},
		{"NO_NEIGH", "fd77::201", false, "no_neighbour"},
		{"FRAG_NEEDED", "10.77.0.200", true, "too_long"},
		{"FRAG_NEEDED", "fd77::200", true, "too_long"},
	}
	ask := func(name, addr string, long bool, counted string) error {
		if err := w.b.SetReal(1, Real{Addr: netip.MustParseAddr(addr)}); err != nil {
			return err
		}
		octets := 100
		if long {
			octets = 1500
		}
		in := frame(vip4, isTCP, 443, append(tcp(syn), make([]byte, octets)...))
		before, err := w.tallies()
		if err != nil {
			return err
		}
		verdict, out, err := w.b.objs.Balance.Test(in)
		if err != nil {
			return err
		}
		after, err := w.tallies()
		if err != nil {
			return err
		}
		var moved []string
		for _, reason := range reasons {
			for range after[reason] - before[reason] {
				moved = append(moved, reason)
			}
		}
		want, wantVerdict := in, uint32(drop)
		if counted == "fib" {
			to := w.m.routes[netip.MustParseAddr(addr)].to
			source := w.m.links[w.eth0]
			want, wantVerdict = slices.Concat(to[:], source[:], in[12:]), redirect
		}
		if verdict != wantVerdict || !slices.Equal(out, want) || !slices.Equal(moved, []string{"ring", counted}) {
			t.Errorf("%s, %s: verdict %d, counted %v; want %d, ring and %s; out\n%x, want\n%x", name, addr, verdict, moved, wantVerdict, counted, out[:60], want[:60])
		}
		return nil
	}
	inHost(func() error {
		ring := slices.Repeat([]uint32{1}, 251)
		if err := setRing(w.b, 0, ring); err != nil {
			return err
		}
		// Another address in a place is another node: no packet is of a flow that the
		// table remembers.
		if err := w.setVIP(VIP{vip4, 443, false}, VIPEntry{}); err != nil {
			return err
		}
		for _, test := range cases {
			if err := ask(test.name, test.addr, test.long, test.counted); err != nil {
				return err
			}
		}
		for _, addr := range tunnels {
			if err := ask("UNSUPP_LWT", addr, false, "no_route"); err != nil {
				return err
			}
		}
		// Forwarding is asked about where the packet comes in, before its route.
		for _, family := range []string{"ipv4", "ipv6"} {
			if err := os.WriteFile("/proc/sys/net/"+family+"/conf/all/forwarding", []byte("0"), 0); err != nil {
				return err
			}
		}
		for _, addr := range []string{"10.77.0.200", "fd77::200"} {
			if err := ask("FWD_DISABLED", addr, false, "no_forwarding"); err != nil {
				return err
			}
		}
		return nil
	})
}
