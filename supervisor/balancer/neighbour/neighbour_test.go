package neighbour

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/baton-mesh/baton/tests/testnet"
)

const patience = 60 * time.Second

// hops is what a follower has said last of each address.
type hops struct {
	mu   sync.Mutex
	last map[netip.Addr]Hop
}

func (h *hops) of(addr netip.Addr) (Hop, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hop, ok := h.last[addr]
	return hop, ok
}

// following runs a follower in the host until the test ends.
func following(t *testing.T, h *testnet.Host, known map[netip.Addr]Hop, addrs ...netip.Addr) (*Follower, *hops) {
	t.Helper()
	var ns netns.NsHandle
	if err := h.Do(func() (err error) { ns, err = netns.Get(); return err }); err != nil {
		t.Fatal(err)
	}
	said := &hops{last: map[netip.Addr]Hop{}}
	f := &Follower{Namespace: &ns, Known: known, Log: slog.New(slog.DiscardHandler), Changed: func(a netip.Addr, h Hop) {
		said.mu.Lock()
		defer said.mu.Unlock()
		said.last[a] = h
	}}
	f.Follow(addrs)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ns.Close()
	})
	return f, said
}

// until waits for a hop of the address that is good.
func until(t *testing.T, said *hops, addr netip.Addr, what string, good func(Hop) bool) Hop {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		hop, ok := said.of(addr)
		if ok && good(hop) {
			return hop
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not %s; the last hop was %+v, %v", addr, what, hop, ok)
		}
	}
}

// macOf is the MAC address of a host's link.
func macOf(t *testing.T, h *testnet.Host) (mac [6]byte) {
	t.Helper()
	err := h.Do(func() error {
		l, err := net.InterfaceByName(testnet.Interface)
		if err == nil {
			copy(mac[:], l.HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func TestHostsOfTheLinkAreFound(t *testing.T) {
	hosts := testnet.New(t, "balancer", "a", "b")
	us, a, b := hosts[0], hosts[1], hosts[2]
	f, said := following(t, us, nil, a.Addr4, b.Addr6)
	for addr, of := range map[netip.Addr]*testnet.Host{a.Addr4: a, b.Addr6: b} {
		hop := until(t, said, addr, "usable", Hop.Usable)
		if hop.MAC != macOf(t, of) || hop.Ifindex == 0 || hop.Local {
			t.Errorf("%s is at %x, want %x: %+v", addr, hop.MAC, macOf(t, of), hop)
		}
	}

	f.Follow([]netip.Addr{us.Addr4})
	if hop := until(t, said, us.Addr4, "there", func(Hop) bool { return true }); !hop.Local || !hop.Usable() {
		t.Errorf("its own address: %+v", hop)
	}
	nobody := netip.MustParseAddr("10.77.0.99")
	f.Follow([]netip.Addr{nobody})
	if hop := until(t, said, nobody, "there", func(Hop) bool { return true }); !strings.Contains(hop.Problem, "nobody") {
		t.Errorf("an address of nobody: %+v", hop)
	}
	far := netip.MustParseAddr("192.0.2.1")
	f.Follow([]netip.Addr{far})
	if hop := until(t, said, far, "there", func(Hop) bool { return true }); !strings.Contains(hop.Problem, "no route") {
		t.Errorf("an address without a route: %+v", hop)
	}
	err := us.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: far.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: a.Addr4.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	until(t, said, far, "behind the gateway", func(h Hop) bool { return strings.Contains(h.Problem, "behind 10.77.0.2") })
}

func TestChangesOfALinkAreFollowed(t *testing.T) {
	hosts := testnet.New(t, "balancer", "a")
	us, a := hosts[0], hosts[1]
	_, said := following(t, us, nil, a.Addr4)
	before := until(t, said, a.Addr4, "usable", Hop.Usable)

	// The entry goes, the host stays: what is known stays in force.
	entry := &netlink.Neigh{LinkIndex: before.Ifindex, IP: a.Addr4.AsSlice()}
	if err := us.Do(func() error { return netlink.NeighDel(entry) }); err != nil {
		t.Fatal(err)
	}
	next := [6]byte{2, 0, 0, 0, 0, 7}
	err := a.Do(func() error {
		link, err := netlink.LinkByName(testnet.Interface)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, next[:])
	})
	if err != nil {
		t.Fatal(err)
	}
	// The host says so to nobody (arp_notify is off): the entry is learnt anew
	// because it is gone.
	if err := us.Do(func() error {
		err := netlink.NeighDel(entry)
		if err != nil && !strings.Contains(err.Error(), "no such file") {
			return err
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Only packets have the kernel look: a dial is one.
	dialled := make(chan struct{})
	go func() {
		defer close(dialled)
		if c, err := us.Dial("udp", netip.AddrPortFrom(a.Addr4, 9)); err == nil {
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	<-dialled
	hop := until(t, said, a.Addr4, "at its new MAC address", func(h Hop) bool { return h.MAC != before.MAC })
	if hop.MAC != next || !hop.Usable() {
		t.Errorf("a moved to %x, and is looked for at %+v", next, hop)
	}

	set := func(up bool) {
		t.Helper()
		err := us.Do(func() error {
			link, err := netlink.LinkByName(testnet.Interface)
			if err != nil {
				return err
			}
			if up {
				return netlink.LinkSetUp(link)
			}
			return netlink.LinkSetDown(link)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	set(false)
	until(t, said, a.Addr4, "without a route", func(h Hop) bool { return strings.Contains(h.Problem, "no route") })
	set(true)
	if hop := until(t, said, a.Addr4, "usable again", Hop.Usable); hop.MAC != next {
		t.Errorf("after the link was down it is looked for at %+v", hop)
	}
}

// Who takes over does not begin by losing what was known: the kernel forgets
// neighbours that it does not send to.
func TestWhatWasKnownStaysInForce(t *testing.T) {
	hosts := testnet.New(t, "balancer", "a")
	us, a := hosts[0], hosts[1]
	var ifindex int
	if err := us.Do(func() error {
		link, err := net.InterfaceByName(testnet.Interface)
		if err == nil {
			ifindex = link.Index
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	silent := netip.MustParseAddr("10.77.0.99")
	known := Hop{Ifindex: ifindex, MAC: [6]byte{2, 0, 0, 0, 0, 9}}
	_, said := following(t, us, map[netip.Addr]Hop{silent: known}, silent, a.Addr4)
	until(t, said, a.Addr4, "usable", Hop.Usable)
	if hop, ok := said.of(silent); ok {
		t.Errorf("what was known has become %+v", hop)
	}
}
