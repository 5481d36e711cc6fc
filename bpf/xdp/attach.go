package xdp

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// source is an interface's own MAC address, as it was a moment ago.
type source struct {
	mac  [6]byte
	seen time.Time
}

func (b *Balancer) sourceOf(ifindex int) ([6]byte, bool) {
	if ifindex == 0 {
		return [6]byte{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s, ok := b.sources[ifindex]; ok && time.Since(s.seen) < time.Second {
		return s.mac, true
	}
	l, err := net.InterfaceByIndex(ifindex)
	if err != nil || len(l.HardwareAddr) != 6 {
		return [6]byte{}, false
	}
	s := source{[6]byte(l.HardwareAddr), time.Now()}
	b.sources[ifindex] = s
	return s.mac, true
}

// setSource has frames leave an interface with its own address, which may have
// changed.
func (b *Balancer) setSource(ifindex uint32, mac [6]byte) error {
	b.mu.Lock()
	delete(b.sources, int(ifindex))
	b.mu.Unlock()
	stale := map[uint32]xdpReal{}
	if err := each(b.objs.Reals, func(index uint32, e *xdpReal) {
		if e.Ifindex == ifindex && e.Flags&uint32(xdpRealFlagREAL_NEIGHBOUR) != 0 && e.Source != mac {
			stale[index] = *e
		}
	}); err != nil {
		return err
	}
	for index, e := range stale {
		e.Source = mac
		if err := b.objs.Reals.Put(index, e); err != nil {
			return err
		}
	}
	return nil
}

// ErrForeign is a program of somebody else where ours should hang.
var ErrForeign = errors.New("another XDP program hangs there, and is left alone")

// ErrNoNative is a driver without XDP.
var ErrNoNative = errors.New("its driver has no native XDP; xdp_mode: generic works on any interface")

// Attach hangs the program on an interface, or replaces it there at once if it
// hangs there already. It is to be called again when the interface gets another
// address: frames for any but its own pass.
func (b *Balancer) Attach(name string, ifindex int, generic bool) error {
	l, err := net.InterfaceByIndex(ifindex)
	if err != nil {
		return err
	}
	entry := xdpLink{Ifindex: uint32(ifindex)}
	copy(entry.Mac[:], l.HardwareAddr)
	if err := b.objs.Links.Put(uint32(ifindex)%b.objs.Links.MaxEntries(), entry); err != nil {
		return err
	}
	if err := b.setSource(uint32(ifindex), entry.Mac); err != nil {
		return err
	}
	pin := b.linkPin(name)
	if old, err := link.LoadPinnedLink(pin, nil); err == nil {
		defer old.Close()
		if hangsAt(old, ifindex) {
			return old.Update(b.objs.Balance)
		}
		if err := old.Unpin(); err != nil { // of an interface that has gone
			return err
		}
	}
	flags := link.XDPDriverMode
	if generic {
		flags = link.XDPGenericMode
	}
	hung, err := link.AttachXDP(link.XDPOptions{Program: b.objs.Balance, Interface: ifindex, Flags: flags})
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return b.takeOver(pin, ifindex)
	case errors.Is(err, unix.EOPNOTSUPP) && !generic:
		return ErrNoNative
	case err != nil:
		return err
	}
	defer hung.Close()
	if err := hung.Pin(pin); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	return nil
}
