// Package testnet makes hosts out of network namespaces, joined by one switch.
//
//	client, node := hosts[0], hosts[1]
//
//	 client                node
//	┌──────────┐          ┌──────────┐
//	│ eth0     │          │ eth0     │    10.77.0.1, 10.77.0.2, … /24
//	└────┬─────┘          └─────┬────┘    fd77::1, fd77::2, … /64
//	     └──────── switch ──────┘
//
// [Distant] makes two hosts with a link between them that takes its time.
//
// Everything is anonymous: it has no name on the machine, so tests run side by
// side, and the kernel takes all of it back when the last descriptor closes,
// even if the test is killed.
package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

// Interface is the name of every host's link to the others.
const Interface = "eth0"

// Host is a network namespace with a loopback interface and a link to other hosts.
type Host struct {
	Name  string
	Addr4 netip.Addr // 10.77.0.n, n counted from 1
	Addr6 netip.Addr // fd77::n

	ns   *os.File
	hub  *os.File // where the switch's end of its link is; nil: there is no switch
	port string   // what that is called
}

// New makes the named hosts and returns them in that order. They go when the
// test ends. Without root the test is skipped, but in CI that is a failure.
func New(t testing.TB, names ...string) []*Host {
	t.Helper()
	need.Root(t, "network namespaces")
	hub, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	if err := doIn(hub, onlySwitch); err != nil {
		t.Fatalf("testnet: make a switch of a bridge: %v", err)
	}
	bridge, err := netlink.NewHandleAt(netNS(hub))
	if err != nil {
		t.Fatalf("testnet: netlink: %v", err)
	}
	defer bridge.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
	if err := bridge.LinkAdd(br); err != nil {
		t.Fatalf("testnet: add the switch: %v", err)
	}
	if err := bridge.LinkSetUp(br); err != nil {
		t.Fatalf("testnet: start the switch: %v", err)
	}

	hosts := make([]*Host, len(names))
	for i, name := range names {
		hosts[i] = newHost(t, name, byte(i+1))
		hosts[i].hub, hosts[i].port = hub, fmt.Sprintf("port%d", i)
		if err := hosts[i].plug(bridge, br); err != nil {
			t.Fatalf("testnet: host %s: %v", name, err)
		}
	}
	return hosts
}

// onlySwitch keeps the firewall out of this namespace's bridge, where the kernel
// has it there (br_netfilter): it drops and cuts frames that are no sound IP.
func onlySwitch() error {
	switches, err := filepath.Glob("/proc/sys/net/bridge/bridge-nf-call-*tables")
	for _, file := range switches {
		err = errors.Join(err, os.WriteFile(file, []byte("0"), 0))
	}
	return err
}

// newHost makes the n-th host of a network, without its link.
func newHost(t testing.TB, name string, n byte) *Host {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return &Host{
		Name:  name,
		Addr4: netip.AddrFrom4([4]byte{10, 77, 0, n}),
		Addr6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: n}),
		ns:    ns,
	}
}

// plug joins the host to the switch by a pair of interfaces.
func (h *Host) plug(bridge *netlink.Handle, br *netlink.Bridge) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: h.port, MasterIndex: br.Index},
		PeerName:      Interface,
		PeerNamespace: netlink.NsFd(h.ns.Fd()),
	}
	if err := bridge.LinkAdd(veth); err != nil {
		return fmt.Errorf("add its link: %w", err)
	}
	if err := bridge.LinkSetUp(veth); err != nil {
		return fmt.Errorf("start the switch's end: %w", err)
	}
	if err := h.start(); err != nil {
		return err
	}
	return h.Do(checksumInSoftware)
}

// start gives the host's link its addresses and sets the interfaces up.
func (h *Host) start() error {
	host, err := netlink.NewHandleAt(netNS(h.ns))
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	for _, name := range []string{"lo", Interface} {
		link, err := host.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := host.LinkSetUp(link); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		if name == "lo" {
			continue
		}
		for _, a := range []*net.IPNet{
			{IP: h.Addr4.AsSlice(), Mask: net.CIDRMask(24, 32)},
			{IP: h.Addr6.AsSlice(), Mask: net.CIDRMask(64, 128)},
		} {
			// Duplicate detection would keep the address unusable for a second.
			if err := host.AddrAdd(link, &netlink.Addr{IPNet: a, Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
	}
	return nil
}

// Do runs fn inside the host and returns its error. Sockets that fn opens stay
// in the host for good, whoever uses them later; goroutines that fn starts, and
// so dials to a name instead of an address, are outside. As fn runs on a
// goroutine of its own it must not call t.Fatal; Do then returns an error.
func (h *Host) Do(fn func() error) error {
	return doIn(h.ns, fn)
}

// doIn runs fn inside a namespace.
func doIn(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so there is no
		// way back that could fail and leave a stranger in this namespace.
		runtime.LockOSThread()
		err := errors.New("testnet: the function ended its goroutine")
		defer func() { done <- err }()
		if e := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); e != nil {
			err = fmt.Errorf("enter a network namespace: %w", e)
			return
		}
		err = fn()
	}()
	return <-done
}

// Command is [exec.Command] inside the host. The command's process is the
// program itself: nsenter replaces itself with it.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	ns := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), h.ns.Fd())
	return exec.Command("nsenter", append([]string{ns, "--", name}, args...)...)
}

// Listen listens inside the host, with plain TCP. It is for what only needs a
// peer; a test of socket options opens its own socket in Do.
func (h *Host) Listen(address string) (l net.Listener, err error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	err = h.Do(func() error {
		l, err = lc.Listen(context.Background(), "tcp", address)
		return err
	})
	return l, err
}

// Dial connects from the host to an address (not a name).
func (h *Host) Dial(network string, address netip.AddrPort) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = net.Dial(network, address.String())
		return err
	})
	return c, err
}
