// Package neighbour follows how frames get to the addresses of a link: through
// which interface, and to which MAC address.
//
// A program that forwards frames by itself does not use the kernel's neighbour
// table, so the kernel neither fills it nor keeps it fresh. This package has the
// kernel do both, and says what has changed. A MAC address that was learnt stays in
// force until another one is: the entry may go, the host is still there.
package neighbour

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Hop is the way to an address.
type Hop struct {
	// Ifindex is the interface that leads there. 0 where there is none.
	Ifindex int
	// MAC is the address of the host on the link. All zeros until it is known.
	MAC [6]byte
	// Local says that the address is this host's own.
	Local bool
	// Problem says in words why the hop is of no use. Empty where it is.
	Problem string
}

// Usable reports whether frames can be sent.
func (h Hop) Usable() bool { return h.Problem == "" }

// Follower follows a set of addresses.
type Follower struct {
	// Namespace is where to look. nil means the caller's own.
	Namespace *netns.NsHandle
	// Log gets what goes wrong on the way. Required.
	Log *slog.Logger
	// Known is what somebody else has learnt before, by address. It stays in force
	// until something else is learnt.
	Known map[netip.Addr]Hop
	// Changed is called with a hop that is new or differs from the last, one call
	// at a time. Required.
	Changed func(netip.Addr, Hop)

	mu     sync.Mutex
	wanted map[netip.Addr]bool
	woken  chan struct{} // has one element while Run must look again
}

const (
	// Events come in bursts; one look serves all of a burst.
	settle = 20 * time.Millisecond
	// How often hosts that are not known are asked for.
	askEvery = time.Second
	// How often what is known is confirmed, and everything compared with the
	// kernel in case that an event was lost.
	confirmEvery = 30 * time.Second
)

// Follow replaces the set of addresses. It may be called before and during Run.
func (f *Follower) Follow(addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = map[netip.Addr]bool{}
	for _, a := range addrs {
		f.wanted[a] = true
	}
	select {
	case f.wake() <- struct{}{}:
	default:
	}
}

// wake is called with the lock held.
func (f *Follower) wake() chan struct{} {
	if f.woken == nil {
		f.woken = make(chan struct{}, 1)
	}
	return f.woken
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	f.mu.Lock()
	woken := f.wake()
	f.mu.Unlock()
	ns := netns.None()
	if f.Namespace != nil {
		ns = *f.Namespace
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer handle.Close()
	r := &run{f: f, handle: handle, hops: map[netip.Addr]Hop{}}
	maps.Copy(r.hops, f.Known)
	for ctx.Err() == nil {
		if err := r.follow(ctx, ns, woken); err != nil {
			// The kernel drops events where nobody reads them in time: what they
			// said is looked up.
			f.Log.Warn("following neighbours begins again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(askEvery):
			}
		}
	}
	return nil
}

// run is what one Run knows. Its goroutine alone uses it.
type run struct {
	f      *Follower
	handle *netlink.Handle
	hops   map[netip.Addr]Hop
}

// follow subscribes, and looks again after each burst of events, until ctx or the
// subscription ends.
func (r *run) follow(ctx context.Context, ns netns.NsHandle, woken <-chan struct{}) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 3)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	neighs, routes, links := make(chan netlink.NeighUpdate), make(chan netlink.RouteUpdate), make(chan netlink.LinkUpdate)
	err := errors.Join(
		netlink.NeighSubscribeWithOptions(neighs, done, netlink.NeighSubscribeOptions{Namespace: &ns, ErrorCallback: fail}),
		netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{Namespace: &ns, ErrorCallback: fail}),
		netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{Namespace: &ns, ErrorCallback: fail}),
	)
	if err != nil {
		drain(neighs, routes, links)
		return err
	}
	defer drain(neighs, routes, links)

	ask, confirm := time.NewTicker(askEvery), time.NewTicker(confirmEvery)
	defer ask.Stop()
	defer confirm.Stop()
	look := time.After(0)
	r.ask(func(h Hop) bool { return h.Ifindex != 0 }) // what is known already may be old
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-neighs:
		case <-routes:
		case <-links:
		case <-woken:
		case <-ask.C:
			r.ask(func(h Hop) bool { return h.Ifindex != 0 && h.MAC == [6]byte{} })
			continue
		case <-confirm.C:
			r.ask(func(h Hop) bool { return h.Ifindex != 0 })
		case <-look:
			look = nil
			if err := r.look(); err != nil {
				return err
			}
			r.ask(func(h Hop) bool { return h.Ifindex != 0 && h.MAC == [6]byte{} })
			continue
		}
		if look == nil {
			look = time.After(settle)
		}
	}
}

// drain lets the goroutines behind the channels end: they close them when their
// subscription is done.
func drain(neighs <-chan netlink.NeighUpdate, routes <-chan netlink.RouteUpdate, links <-chan netlink.LinkUpdate) {
	go func() {
		for range neighs {
		}
	}()
	go func() {
		for range routes {
		}
	}()
	go func() {
		for range links {
		}
	}()
}

// ask has the kernel resolve, or confirm, the addresses whose hop is chosen.
func (r *run) ask(chosen func(Hop) bool) {
	for addr, hop := range r.hops {
		if hop.Local || !chosen(hop) {
			continue
		}
		// NTF_USE is what a packet to the neighbour would do (net/core/neighbour.c, neigh_add).
		err := r.handle.NeighSet(&netlink.Neigh{LinkIndex: hop.Ifindex, Family: family(addr), IP: addr.AsSlice(), Flags: netlink.NTF_USE})
		if err != nil {
			r.f.Log.Debug("ask for a neighbour", "address", addr, "error", err)
		}
	}
}

func family(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// place is an entry of the neighbour table.
type place struct {
	ifindex int
	addr    netip.Addr
}

// look compares every address with the kernel.
func (r *run) look() error {
	known := map[place][6]byte{}
	for _, f := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := r.handle.NeighList(0, f)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // what it missed comes as an event
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range list {
			addr, ok := netip.AddrFromSlice(n.IP)
			const unknown = netlink.NUD_INCOMPLETE | netlink.NUD_FAILED | netlink.NUD_NONE
			if ok && len(n.HardwareAddr) == 6 && n.State&unknown == 0 {
				known[place{n.LinkIndex, addr.Unmap()}] = [6]byte(n.HardwareAddr)
			}
		}
	}
	r.f.mu.Lock()
	wanted := maps.Clone(r.f.wanted)
	r.f.mu.Unlock()
	maps.DeleteFunc(r.hops, func(addr netip.Addr, _ Hop) bool { return !wanted[addr] })
	for addr := range wanted {
		before, had := r.hops[addr]
		hop := r.route(addr)
		if mac, ok := known[place{hop.Ifindex, addr}]; ok {
			hop.MAC = mac
		} else if hop.Ifindex == before.Ifindex {
			hop.MAC = before.MAC
		}
		if hop.Problem == "" && !hop.Local && hop.MAC == [6]byte{} {
			hop.Problem = "nobody on the link answers for it yet"
		}
		if !had || hop != before {
			r.hops[addr] = hop
			r.f.Changed(addr, hop)
		}
	}
	return nil
}

// route finds the interface that leads to an address.
func (r *run) route(addr netip.Addr) Hop {
	routes, err := r.handle.RouteGet(addr.AsSlice())
	switch {
	case err != nil:
		return Hop{Problem: fmt.Sprintf("no route: %v", err)}
	case len(routes) == 0:
		return Hop{Problem: "no route"}
	}
	route := routes[0]
	switch {
	case route.Type == unix.RTN_LOCAL:
		return Hop{Ifindex: route.LinkIndex, Local: true}
	case len(route.Gw) > 0 && !bytes.Equal(route.Gw, addr.AsSlice()):
		return Hop{Problem: fmt.Sprintf("not on a link of this host, but behind %v", route.Gw)}
	case route.Via != nil:
		return Hop{Problem: fmt.Sprintf("not on a link of this host, but behind %v", route.Via)}
	}
	return Hop{Ifindex: route.LinkIndex}
}
