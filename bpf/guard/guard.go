// Package guard keeps a generation from harming the groups its sockets are in.
//
// A generation runs without a capability, and still whoever holds one member of
// a reuseport group may take the program off the whole group, put another in its
// place, or leave it. A [Guard] refuses those socket options, with EPERM, on the
// sockets that [Guard.Protect] was called for. Nobody needs them there, so root
// is refused too: a generation may run as root. The supervisor attaches its
// programs through sockets that it gives to nobody.
//
// What was measured, on Linux 6.18, and what follows:
//
//   - The program that decides is the one of the cgroup in which the socket was
//     made, not of the one that the caller is in: attached to the generation's
//     cgroup it ran for none of the five options, attached to its maker's for
//     all. So it belongs to the supervisor's own cgroup.
//   - That may be the root of the hierarchy (no systemd, a container with its own
//     namespace), and moving the supervisor elsewhere would change which firewall
//     rules and limits hold for it. So the program tells the sockets apart, by a
//     storage on the socket itself. A cookie it could not ask for: the kernel
//     gives bpf_get_socket_cookie to no program on this hook.
//   - A storage ends with its socket, is shared by all duplicates of its
//     descriptor, and is not passed on to accepted connections: there is nothing
//     to forget when a socket closes.
//   - It costs every other setsockopt on sockets made in that cgroup 0.6 µs, on a
//     loaded machine where the call itself took 0.4 (BenchmarkOthers).
//
// What it cannot refuse is shutdown, close and connect: a listening socket that
// stops listening leaves its slot, which the supervisor sees by the cookies.
package guard

//go:generate go tool bpf2go -target bpfel -type tally -type protected -type option guard guard.c -- -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/baton-mesh/baton/bpf/internal/pinned"
)

// Option is a socket option that is refused.
type Option int

// The options, in the order of the counters.
const (
	ReusePort  = Option(guardOptionOPTION_REUSEPORT)   // SO_REUSEPORT set to 0
	AttachBPF  = Option(guardOptionOPTION_ATTACH_BPF)  // SO_ATTACH_BPF
	AttachCBPF = Option(guardOptionOPTION_ATTACH_CBPF) // SO_ATTACH_REUSEPORT_CBPF
	AttachEBPF = Option(guardOptionOPTION_ATTACH_EBPF) // SO_ATTACH_REUSEPORT_EBPF
	Detach     = Option(guardOptionOPTION_DETACH)      // SO_DETACH_REUSEPORT_BPF
	Options    = int(guardOptionOPTIONS)
)

// String is the option as it stands in metrics.
func (o Option) String() string {
	return [...]string{"reuseport", "attach_bpf", "attach_reuseport_cbpf", "attach_reuseport_ebpf", "detach_reuseport_bpf"}[o]
}

// Counts are refusals by option.
type Counts [Options]uint64

// Guard is the program on one cgroup. Its methods may be called from any
// goroutine.
type Guard struct {
	dir  string // where it is pinned; empty: nowhere
	objs guardObjects
	link link.Link
}

// layout names the pinned maps' version, as in package reuseport.
const layout = "guard-v1"

// Open attaches the program to the cgroup whose directory is given, beside any
// that others have attached there. When dir is not empty it is a directory of a
// BPF file system, and everything is pinned below dir/guard-v1: sockets that an
// earlier process has put under protection stay so, without an instant between.
func Open(cgroup, dir string) (_ *Guard, err error) {
	spec, err := loadGuard()
	if err != nil {
		return nil, err
	}
	g := new(Guard)
	var o ebpf.CollectionOptions
	if g.dir, o, err = pinned.Maps(dir, layout, spec, guardMapSockets, guardMapRefusals); err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&g.objs, &o); err != nil {
		return nil, fmt.Errorf("load cgroup/setsockopt: %w", err)
	}
	defer func() {
		if err != nil {
			g.Close()
		}
	}()
	if g.link, err = pinned.Attach(g.dir, cgroup, ebpf.AttachCGroupSetsockopt, g.objs.Guard); err != nil {
		return nil, fmt.Errorf("attach cgroup/setsockopt to %s: %w", cgroup, err)
	}
	return g, nil
}

// Protect refuses the options on this socket from now on, to whoever holds it,
// until the last descriptor of it is closed. Refusals count for the slot.
func (g *Guard) Protect(fd int, slot uint8) error {
	if err := g.objs.Sockets.Put(int32(fd), guardProtected{Slot: uint32(slot)}); err != nil {
		return fmt.Errorf("protect a socket of slot %d: %w", slot, err)
	}
	return nil
}

// Refused returns what was refused on sockets of a slot.
func (g *Guard) Refused(slot uint8) (Counts, error) {
	var t guardTally
	if err := g.objs.Refusals.Lookup(uint32(slot), &t); err != nil {
		return Counts{}, fmt.Errorf("read the refusals of slot %d: %w", slot, err)
	}
	return t.Refused, nil
}

// Close gives back what this process holds. Without pins the protection ends;
// with them it stays.
func (g *Guard) Close() error {
	var err error
	if g.link != nil {
		err = g.link.Close()
	}
	return errors.Join(err, g.objs.Close())
}

// Unpin ends the protection and removes the pins, those of earlier processes too.
func (g *Guard) Unpin() error {
	if g.dir == "" {
		return nil
	}
	// Without it the link would live on until the kernel has freed the inode of the pin.
	return errors.Join(g.link.Detach(), os.RemoveAll(g.dir))
}
