package xdp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// layout names the version of what is pinned. A new shape of a table, or another
// meaning of what is in one, is another version.
const layout = "xdp-v4"

// earlier are the layouts in which reals and VIPs are what they are in this one.
var earlier = []string{"xdp-v1", "xdp-v2", "xdp-v3"}

// carry brings over what a program of an earlier layout works by, while it goes on
// working: reals, VIPs and flows are copied; a connection table of this one's shape is shared. What else
// there is the control plane writes. It returns what is to be done when this
// layout's tables are there, and does nothing once this program hangs anywhere.
func (b *Balancer) carry() (then func() error, err error) {
	if len(pinnedLinks(b.dir)) > 0 {
		return func() error { return nil }, nil
	}
	for _, version := range earlier {
		dir := filepath.Join(filepath.Dir(b.dir), version)
		if len(pinnedLinks(dir)) == 0 {
			continue
		}
		if err := b.shareFlows(dir); err != nil {
			return nil, fmt.Errorf("share the connection table of %s: %w", version, err)
		}
		return func() error {
			err := errors.Join(
				copyEntries[xdpVip4Key, xdpVip](dir, "vips4", b.objs.Vips4),
				copyEntries[xdpVip6Key, xdpVip](dir, "vips6", b.objs.Vips6),
				copyEntries[uint32, xdpReal](dir, "reals", b.objs.Reals),
				b.carryFlows(dir),
			)
			if err != nil {
				return fmt.Errorf("copy the tables of %s: %w", version, err)
			}
			return nil
		}, nil
	}
	return func() error { return nil }, nil
}

// shareFlows pins the connection table of an earlier layout for this one too, if it
// has the same shape.
func (b *Balancer) shareFlows(dir string) error {
	flows, err := ebpf.LoadPinnedMap(filepath.Join(dir, "flows"), nil)
	if err != nil {
		return err
	}
	defer flows.Close()
	pin := filepath.Join(b.dir, "flows")
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if flows.Type() != ebpf.Array {
		return nil
	}
	// A copy has no path: with one, Pin would move the table away from there.
	copied, err := flows.Clone()
	if err != nil {
		return err
	}
	defer copied.Close()
	return copied.Pin(pin)
}

func copyEntries[K, V any](dir, name string, to *ebpf.Map) error {
	from, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
	if err != nil {
		return err
	}
	defer from.Close()
	var key K
	var value V
	it := from.Iterate()
	for it.Next(&key, &value) {
		if err := to.Put(key, value); err != nil {
			return err
		}
	}
	return it.Err()
}

func pinnedLinks(dir string) []string {
	pins, _ := filepath.Glob(filepath.Join(dir, "link-*"))
	return pins
}

// takeOver replaces a program of an earlier layout where it hangs, and moves the
// link here. Nothing of the earlier layout is left when this was its last one.
// It returns ErrForeign where no balancer of this runtime directory hangs.
func (b *Balancer) takeOver(pin string, ifindex int) error {
	pins, _ := filepath.Glob(filepath.Join(filepath.Dir(b.dir), "*", filepath.Base(pin)))
	for _, path := range pins {
		old, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			continue
		}
		defer old.Close()
		if !hangsAt(old, ifindex) {
			continue
		}
		dir := filepath.Dir(path)
		if version := filepath.Base(dir); !known(version) {
			return fmt.Errorf("a balancer with tables of %s hangs there, which this build does not know: "+
				"run the build that it is of, or take it off (baton balance remove), which ends flows that carry no id", version)
		}
		if err := old.Update(b.objs.Balance); err != nil {
			return fmt.Errorf("replace the program of an earlier version: %w", err)
		}
		// Once more: what it has learned since the first time.
		if err := b.carryFlows(dir); err != nil {
			return err
		}
		if err := old.Pin(pin); err != nil { // moves it
			return fmt.Errorf("move the link of an earlier version: %w", err)
		}
		if len(pinnedLinks(dir)) == 0 {
			return os.RemoveAll(dir)
		}
		return nil
	}
	return ErrForeign
}

func known(version string) bool {
	for _, v := range earlier {
		if v == version {
			return true
		}
	}
	return false
}

func hangsAt(l link.Link, ifindex int) bool {
	info, err := l.Info()
	return err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex)
}
