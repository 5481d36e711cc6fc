package reuseport

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/bpf/internal/built"
)

// This file is about what outlives a process: pins, and descriptors that somebody keeps.

// Reopen loads the program with the maps that an earlier process pinned below
// dir: the shift, the listeners' numbers, the slots and their sockets, and the
// counters are what they were. So is the program, if that process was of the same
// build; else the groups keep the earlier one, on the same maps, until [Group.Attach]. The error is [os.ErrNotExist] where nothing is pinned,
// and [ErrLayout] where only another layout is.
func Reopen(dir string) (*Node, error) {
	if err := Pinned(dir); err != nil {
		return nil, err
	}
	return load(filepath.Join(dir, layout), func(n *Node, spec *ebpf.MapSpec, name string) (*ebpf.Map, error) {
		m, err := ebpf.LoadPinnedMap(n.path(name), nil)
		if errors.Is(err, os.ErrNotExist) && added(name) {
			return n.make(spec, name)
		}
		if err != nil {
			return nil, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		if err := spec.Compatible(m); err != nil {
			m.Close()
			return nil, fmt.Errorf("the pinned map %s: %w", name, err)
		}
		return m, nil
	})
}

// ErrLayout says that there are tables of another version.
var ErrLayout = errors.New("the steering tables have another layout")

// Pinned says why [Reopen] would find nothing in dir: [os.ErrNotExist] or [ErrLayout].
func Pinned(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, "v[0-9]*"))
	if err != nil {
		return err
	}
	for i := range found {
		found[i] = filepath.Base(found[i])
	}
	return hasLayout(found)
}

// hasLayout looks for this layout among those that there are.
func hasLayout(found []string) error {
	switch {
	case slices.Contains(found, layout):
		return nil
	case len(found) == 0:
		return fmt.Errorf("no tables were left: %w", os.ErrNotExist)
	}
	return fmt.Errorf("%w: they are %s, this version has %s: start the version that made them", ErrLayout, found[0], layout)
}

// Tables are descriptors of the maps, by names that tell their layout, for a process
// that is to [Regain] them. They are the node's, and open as long as it is.
func (n *Node) Tables() map[string]int {
	tables := map[string]int{}
	for name, m := range n.maps() {
		tables[layout+"/"+name] = (*m).FD()
	}
	if n.flows != nil {
		tables[layout+"/"+datagramMapFlows] = n.flows.FD()
	}
	if n.keys != nil {
		tables[layout+"/"+cidkeys.MapName] = n.keys.Map().FD()
	}
	return tables
}

// Regain is [Reopen] where nothing is pinned, but somebody has kept the descriptors of
// [Node.Tables], which stay the caller's. What it opens it pins below dir, unless that
// is empty. The error is [os.ErrNotExist] where tables is empty, and [ErrLayout] where
// they are of another layout alone.
func Regain(dir string, tables map[string]int) (*Node, error) {
	var layouts []string
	for name := range tables {
		of, _, _ := strings.Cut(name, "/")
		layouts = append(layouts, of)
	}
	if err := hasLayout(layouts); err != nil {
		return nil, err
	}
	if dir != "" {
		dir = filepath.Join(dir, layout)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
	}
	provide := func(n *Node, spec *ebpf.MapSpec, name string) (*ebpf.Map, error) {
		fd, ok := tables[layout+"/"+name]
		if !ok && added(name) {
			return n.make(spec, name)
		}
		if !ok {
			return nil, fmt.Errorf("map %s was not kept: %w", name, os.ErrNotExist)
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		m, err := ebpf.NewMapFromFD(own)
		if err != nil {
			return nil, fmt.Errorf("open the kept map %s: %w", name, err)
		}
		if err := spec.Compatible(m); err != nil {
			m.Close()
			return nil, fmt.Errorf("the kept map %s: %w", name, err)
		}
		return m, n.pin(name, m)
	}
	n, err := load(dir, provide)
	if err != nil {
		return nil, err
	}
	if tables[layout+"/"+datagramMapFlows] != 0 {
		var spec *ebpf.CollectionSpec
		if spec, err = loadDatagram(); err == nil {
			n.flows, err = provide(n, spec.Maps[datagramMapFlows], datagramMapFlows)
		}
	}
	if err == nil && tables[layout+"/"+cidkeys.MapName] != 0 {
		var m *ebpf.Map
		if m, err = provide(n, cidkeys.Spec(), cidkeys.MapName); err == nil {
			n.keys = cidkeys.Of(m)
		}
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// added reports that earlier versions of this layout did not have the map. What they
// have left goes on without what they had counted in it.
func added(name string) bool { return name == steerMapMoves }

// program is the one that an earlier process of this build has pinned, on the same maps,
// or else is loaded, and pinned.
func (n *Node) program(p built.Program, spec *ebpf.ProgramSpec, maps map[string]*ebpf.Map, load func() (*ebpf.Program, error)) (*ebpf.Program, error) {
	if n.dir != "" {
		var uses []*ebpf.Map
		for _, ins := range spec.Instructions {
			if m := maps[ins.Reference()]; m != nil && ins.IsLoadFromMap() {
				uses = append(uses, m)
			}
		}
		if left, err := p.Open(n.dir, uses...); err == nil {
			return left, nil
		}
	}
	loaded, err := load()
	if err != nil || n.dir == "" {
		return loaded, err
	}
	if err := p.Pin(n.dir, loaded); err != nil {
		loaded.Close()
		return nil, pinning(p.Path(n.dir), err)
	}
	return loaded, nil
}

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// pin puts an object under its name in the place of what may have it.
func (n *Node) pin(name string, object interface{ Pin(string) error }) error {
	if n.dir == "" {
		return nil
	}
	err := os.Remove(n.path(name))
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = object.Pin(n.path(name))
	}
	return pinning(name, err)
}

// pinning explains why something is not pinned.
func pinning(what string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: the BPF file system was unmounted or emptied; a supervisor in the place of this one mounts it again (baton run --replace)", err)
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", what, err)
	}
	return nil
}

// Unpin removes the node's pins.
func (n *Node) Unpin() error {
	if n.dir == "" {
		return nil
	}
	return os.RemoveAll(n.dir)
}
