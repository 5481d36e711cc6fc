package balancer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/baton-mesh/baton/bpf/xdp"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
)

// mirror writes to the real kernel what the one that remembers has taken.
type mirror struct {
	*fakeKernel
	real *xdp.Balancer
}

func newMirror(t *testing.T, size int) *mirror {
	t.Helper()
	need.Root(t, "loading BPF programs")
	b, err := xdp.Open(xdp.Options{Dir: scratch.Pins(t), RingSize: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return &mirror{newFakeKernel(size), b}
}

func (m *mirror) SetReal(index uint32, r Real) error {
	if err := m.fakeKernel.SetReal(index, r); err != nil {
		return err
	}
	return m.real.SetReal(index, r)
}

func (m *mirror) DeleteReal(index uint32) error {
	if err := m.fakeKernel.DeleteReal(index); err != nil {
		return err
	}
	return m.real.DeleteReal(index)
}

func (m *mirror) SetServerID(id, index uint32) error {
	if err := m.fakeKernel.SetServerID(id, index); err != nil {
		return err
	}
	return m.real.SetServerID(id, index)
}

func (m *mirror) DeleteServerID(id uint32) error {
	if err := m.fakeKernel.DeleteServerID(id); err != nil {
		return err
	}
	return m.real.DeleteServerID(id)
}

func (m *mirror) SetRings(ids []uint32, fill func(id uint32, table []uint32)) error {
	if err := m.fakeKernel.SetRings(ids, fill); err != nil {
		return err
	}
	return m.real.SetRings(ids, fill)
}

func (m *mirror) DeleteRing(ring uint32) error {
	if err := m.fakeKernel.DeleteRing(ring); err != nil {
		return err
	}
	return m.real.DeleteRing(ring)
}

func (m *mirror) SetVIP(v VIP, to VIPEntry) error {
	if err := m.fakeKernel.SetVIP(v, to); err != nil {
		return err
	}
	return m.real.SetVIP(v, to)
}

func (m *mirror) DeleteVIP(v VIP) error {
	if err := m.fakeKernel.DeleteVIP(v); err != nil {
		return err
	}
	return m.real.DeleteVIP(v)
}

// disagrees compares the real kernel's tables with those that are remembered.
func (m *mirror) disagrees() error {
	held, err := m.real.Held()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !maps.Equal(held.Reals, m.reals) || !maps.Equal(held.ServerIDs, m.ids) || !maps.Equal(held.VIPs, m.vips) {
		return fmt.Errorf("the kernel holds %+v, want %+v, %v, %v", held, m.reals, m.ids, m.vips)
	}
	if !slices.Equal(slices.Sorted(slices.Values(held.Rings)), slices.Sorted(maps.Keys(m.rings))) {
		return fmt.Errorf("the kernel holds the rings %v", held.Rings)
	}
	for id, want := range m.rings {
		if got, err := m.real.Ring(id); err != nil || !slices.Equal(got, want) {
			return errors.Join(fmt.Errorf("ring %d differs in the kernel", id), err)
		}
	}
	return nil
}
