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
	"sync"

	"github.com/cilium/ebpf"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/bpf/internal/built"
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
	fresh  bool                             // no other process has used these tables
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
	if err != nil {
		if dir != "" {
			os.RemoveAll(dir)
		}
		return nil, err
	}
	n.fresh = true
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
	n.prog, err = n.program(built.Of(steerProgSteer, _SteerBytes), spec.Programs[steerProgSteer], replacements, func() (*ebpf.Program, error) {
		var objs steerPrograms
		err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: replacements})
		return objs.Steer, err
	})
	if err != nil {
		return nil, fmt.Errorf("load sk_reuseport: %w", err)
	}
	return n, n.readPlaces()
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
	program, err := n.program(built.Of(datagramProgDatagram, _DatagramBytes, serverID), spec.Programs[datagramProgDatagram], replacements, func() (*ebpf.Program, error) {
		var objs datagramPrograms
		err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: replacements})
		return objs.Datagram, err
	})
	if err != nil {
		return fmt.Errorf("load sk_reuseport for datagrams: %w", err)
	}
	if n.datagram != nil {
		n.datagram.Close()
	}
	n.datagram = program
	return nil
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

func (n *Node) make(spec *ebpf.MapSpec, name string) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	return m, n.pin(name, m)
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
