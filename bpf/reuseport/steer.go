// Package reuseport steers new flows to a generation's sockets.
//
// A [Node] is the one program of a node and its maps: the shift in force, the
// sources of probes, and in each slot the sockets of a generation. A [Group] is
// one listener: the address by which the program knows it, and its sink. What
// always holds:
//
//   - A shift is one atomic store; [Node.Fence] returns when no packet is still
//     being steered by what was there before.
//   - A socket is in at most one slot, and a slot gives nothing before
//     [Group.Fill] and after [Node.Empty].
//   - Neither closing a Node nor the death of its process changes the way of a
//     packet: the program and its maps live as long as a member of a group.
package reuseport

//go:generate go tool bpf2go -target bpfel -type address -type listener -type place_key -type place -type tally -type moved -type source -type reason -type choice steer steer.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu
//go:generate go tool bpf2go -target bpfel datagram datagram.c -- -I../include -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/cidkeys"
)

// The fixed shape of the maps.
const (
	Slots        = 256     // a generation's place in the tables is 0 to 255
	Workers      = 64      // sockets of one slot on one listener
	MaxListeners = 16384   // numbered from 1
	MaxSockets   = 1 << 18 // of all generations

	// layout names the pinned maps' version. A change of a map's shape is a new
	// version in a directory of its own; an old directory is never reinterpreted.
	layout = "v2"
)

// Node holds the steering program and its maps. Its methods may be called from
// any goroutine, but one slot is filled and cleared by one at a time.
type Node struct {
	dir       string // where things are pinned; empty: nowhere
	prog      *ebpf.Program
	datagram  *ebpf.Program // nil until Datagrams, as flows
	flows     *ebpf.Map
	keys      *cidkeys.Table // nil until Keys
	shift     *ebpf.Map
	probes    *ebpf.Map
	listeners *ebpf.Map
	sinks     *ebpf.Map
	armed     *ebpf.Map
	sockets   *ebpf.Map
	placeOf   *ebpf.Map
	tallies   *ebpf.Map
	moves     *ebpf.Map
	words     []uint64 // shift, mapped
	arms      []uint64 // armed, mapped

	mu     sync.Mutex
	places [2 * Slots]map[uint32]steerPlace // by slot and listener, as in placeOf
	ranges ranges                           // of sockets that have a place
}

// maps are the maps that live as long as the node, by name.
func (n *Node) maps() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		steerMapShift: &n.shift, steerMapProbes: &n.probes, steerMapListeners: &n.listeners, steerMapSinks: &n.sinks,
		steerMapArmed: &n.armed, steerMapSockets: &n.sockets, steerMapPlaces: &n.placeOf, steerMapTallies: &n.tallies,
		steerMapMoves: &n.moves,
	}
}

// Open loads the program with maps of its own. When dir is not empty it is a
// directory of a BPF file system, which Open makes, and everything is pinned
// below dir/v2, fresh: what an earlier process has pinned there is unpinned,
// and lives on as long as sockets use it.
func Open(dir string) (*Node, error) {
	if dir != "" {
		old, err := filepath.Glob(filepath.Join(dir, "v[0-9]*"))
		for _, d := range old {
			err = errors.Join(err, os.RemoveAll(d))
		}
		if err != nil {
			return nil, fmt.Errorf("unpin what was left: %w", err)
		}
		dir = filepath.Join(dir, layout)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
	}
	n, err := load(dir, func(n *Node, spec *ebpf.MapSpec, name string) (*ebpf.Map, error) {
		return n.make(spec, name)
	})
	if err != nil && dir != "" {
		os.RemoveAll(dir)
	}
	return n, err
}

// Reopen loads the program with the maps that an earlier process pinned below
// dir: the shift, the listeners' numbers, the slots and their sockets, and the
// counters are what they were. The groups keep the earlier program, on the same
// maps, until [Group.Attach]. The error is [os.ErrNotExist] where nothing is pinned,
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

func load(dir string, provide func(*Node, *ebpf.MapSpec, string) (*ebpf.Map, error)) (_ *Node, err error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, err
	}
	n := &Node{dir: dir}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	replacements := map[string]*ebpf.Map{}
	for name, m := range n.maps() {
		if *m, err = provide(n, spec.Maps[name], name); err != nil {
			return nil, err
		}
		replacements[name] = *m
	}
	if n.words, err = mapWords(n.shift); err != nil {
		return nil, err
	}
	if n.arms, err = mapWords(n.armed); err != nil {
		return nil, err
	}
	var objs steerPrograms
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: replacements}); err != nil {
		return nil, fmt.Errorf("load sk_reuseport: %w", err)
	}
	n.prog = objs.Steer
	if err := n.readPlaces(); err != nil {
		return nil, err
	}
	return n, n.pin(steerProgSteer, n.prog)
}

// Keys are those of encrypted connection IDs: as an earlier process has left them,
// or none yet. The table is the node's.
func (n *Node) Keys() (*cidkeys.Table, error) {
	if n.keys != nil {
		return n.keys, nil
	}
	if n.dir != "" {
		if left, err := cidkeys.Pinned(n.path(cidkeys.MapName)); err == nil {
			n.keys = left
			return left, nil
		}
	}
	keys, err := cidkeys.New()
	if err != nil {
		return nil, err
	}
	n.keys = keys
	return keys, n.pin(cidkeys.MapName, keys.Map())
}

// Datagrams loads the program of groups of UDP sockets, which needs the node's
// number: connection IDs that name another node are no flow of this one. It comes
// before the first group of UDP, and reads encrypted IDs by [Node.Keys].
func (n *Node) Datagrams(serverID uint32) error {
	keys, err := n.Keys()
	if err != nil {
		return err
	}
	spec, err := loadDatagram()
	if err != nil {
		return err
	}
	if err := spec.Variables[datagramVarSERVER_ID].Set(serverID); err != nil {
		return fmt.Errorf("set the node's number: %w", err)
	}
	if n.flows == nil {
		if n.flows, err = n.makeFlows(spec.Maps[datagramMapFlows]); err != nil {
			return err
		}
	}
	replacements := map[string]*ebpf.Map{cidkeys.MapName: keys.Map(), datagramMapFlows: n.flows}
	for name, m := range n.maps() {
		if spec.Maps[name] != nil {
			replacements[name] = *m
		}
	}
	var objs datagramPrograms
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: replacements}); err != nil {
		return fmt.Errorf("load sk_reuseport for datagrams: %w", err)
	}
	if n.datagram != nil {
		n.datagram.Close()
	}
	n.datagram = objs.Datagram
	return n.pin(datagramProgDatagram, n.datagram)
}

// makeFlows finds the flows that an earlier process remembered, or begins anew.
func (n *Node) makeFlows(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if n.dir != "" {
		m, err := ebpf.LoadPinnedMap(n.path(datagramMapFlows), nil)
		if err == nil && spec.Compatible(m) == nil {
			return m, nil
		}
		if err == nil {
			m.Close()
		}
	}
	return n.make(spec, datagramMapFlows)
}

// added reports that earlier versions of this layout did not have the map. What they
// have left goes on without what they had counted in it.
func added(name string) bool { return name == steerMapMoves }

func (n *Node) make(spec *ebpf.MapSpec, name string) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	return m, n.pin(name, m)
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
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: the BPF file system was unmounted or emptied; a supervisor in the place of this one mounts it again (baton run --replace)", err)
	}
	if err != nil {
		return fmt.Errorf("pin %s: %w", name, err)
	}
	return nil
}

// Close gives back what this process holds and leaves the pins. Steering goes on.
func (n *Node) Close() error {
	var errs []error
	for _, words := range []*[]uint64{&n.words, &n.arms} {
		if *words != nil {
			errs = append(errs, unmapWords(*words))
			*words = nil
		}
	}
	for _, m := range n.maps() {
		if *m != nil {
			errs = append(errs, (*m).Close())
		}
	}
	if n.flows != nil {
		errs = append(errs, n.flows.Close())
	}
	if n.keys != nil {
		errs = append(errs, n.keys.Close())
	}
	for _, p := range []*ebpf.Program{n.prog, n.datagram} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// Unpin removes the node's pins.
func (n *Node) Unpin() error {
	if n.dir == "" {
		return nil
	}
	return os.RemoveAll(n.dir)
}

// Counters reads one slot's counters, or those of [NoSlot], over all listeners
// and CPUs.
func (n *Node) Counters(slot int) (Counts, error) {
	var perCPU []steerTally
	if err := n.tallies.Lookup(uint32(slot), &perCPU); err != nil {
		return Counts{}, fmt.Errorf("read the counters of slot %d: %w", slot, err)
	}
	var sum Counts
	for _, t := range perCPU {
		sum.add(t.Runs)
	}
	return sum, nil
}
