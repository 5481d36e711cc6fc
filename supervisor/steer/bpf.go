package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

// BPF steers by a program on the group of each listener's sockets: the kernel half,
// as the supervisor uses it. Make it with [OpenBPF].
type BPF struct {
	attach bool         // false: the programs are loaded and steer nothing
	mark   func(Socket) // called on each listening socket before it listens
	node   *reuseport.Node
	sinks  sync.Map // cookies of the sockets that are sinks

	datagrams *datagrams

	mu         sync.Mutex
	listeners  []*listener // in the order in which they came
	byAddress  map[reuseport.Address]*listener
	numbers    map[uint32]bool // those that are taken
	lastNumber uint32
	ownShifts  map[uint32]bool // numbers that have a shift of their own
	refused    uint64          // by listeners while they were closed; those that are go uncounted

	queuesMu sync.Mutex
	queues   *iter.Queues
}

// listener is one address of the node for as long as a generation has it.
type listener struct {
	name       string
	address    string
	protocol   config.Protocol
	udp        bool
	group      *reuseport.Group
	open       bool   // it has its sink
	lostBefore uint64 // runs that found nobody, before it was closed

	sinkMu sync.Mutex
	conf   config.Listener
	sink   Socket
	missed uint64 // let fall by sinks that have closed
}

// Options say what a [BPF] starts with.
type Options struct {
	// Listeners are those of the configuration and of generations that were adopted.
	Listeners []config.Listener
	// ServerID is the node's number: in connection IDs with it the program of
	// datagrams finds slots.
	ServerID uint32
	// Keys are those by which it reads encrypted ones. Required.
	Keys *idkeys.Keys
	// Pins is the directory, see [Pins], where tables and programs are pinned. Empty:
	// nothing is.
	Pins string
	// Unsteered loads the programs and attaches them to nothing: new flows follow the
	// kernel's hash over all sockets that listen. There are no sinks then.
	Unsteered bool
	// Again goes on with the tables of an earlier supervisor, whose generations are in
	// them: from their pins, or else from Kept, descriptors by the names of
	// [BPF.Tables], which stay the caller's.
	Again bool
	Kept  map[string]int
	// Mark, if set, is called on each listening socket before it listens.
	Mark func(Socket)
}

// OpenBPF loads the programs and makes the groups and sinks of listeners. With Again,
// they are closed until it is read who serves; but where the tables are fresh, and
// know nobody yet, clients wait in the sinks. A failure takes nothing away that an
// earlier supervisor has left.
func OpenBPF(o Options) (_ *BPF, err error) {
	s := &BPF{attach: !o.Unsteered, mark: o.Mark, byAddress: map[reuseport.Address]*listener{}}
	if s.mark == nil {
		s.mark = func(Socket) {}
	}
	var fresh bool
	defer func() {
		switch {
		case err == nil:
		case fresh:
			s.Close()
		default: // who serves by the tables goes on, and another supervisor will look for them
			s.release()
		}
	}()
	if s.node, fresh, err = openNode(o.Pins, o.Again, o.Kept); err != nil {
		return nil, err
	}
	if s.numbers, err = s.node.Numbers(); err != nil {
		return nil, err
	}
	s.datagrams = &datagrams{node: s.node, serverID: o.ServerID, at: s.at, ids: o.Keys}
	if s.queues, err = iter.Open(o.Pins); err != nil {
		return nil, err
	}
	return s, s.addAll(o.Listeners, fresh)
}

// Mode is config.SteeringBPF.
func (s *BPF) Mode() config.Steering { return config.SteeringBPF }

// Chooses is true: the program sends each new flow where the shift says.
func (s *BPF) Chooses() bool { return true }

// Refuse never does.
func (s *BPF) Refuse(Asked) error { return nil }

// Prober is the program itself, unless it does not steer; see [Options.Unsteered].
func (s *BPF) Prober() Prober {
	if !s.attach {
		return nil // a probe could reach anybody
	}
	return s
}

// Bind makes the listening sockets of a generation, in no slot: they listen, and the
// program picks none of them.
func (s *BPF) Bind(c *config.Config) (Sockets, error) { return bindAll(c, s.mark) }

// BindDatagrams makes its UDP sockets.
func (s *BPF) BindDatagrams(c *config.Config) (Sockets, error) { return s.datagrams.bind(c) }

// FillDatagrams arms a slot with UDP sockets.
func (s *BPF) FillDatagrams(slot uint8, c *config.Config, sockets Sockets) error {
	return s.datagrams.fill(slot, c, sockets)
}

// EmptyDatagrams says that the slot's process has ended.
func (s *BPF) EmptyDatagrams(slot uint8) { s.datagrams.dead(slot) }

// Fence returns when no program runs any more that has read the tables before it.
func (s *BPF) Fence() error { return s.node.Fence() }

// Steer sends what comes from one source, an address of TCP or UDP, to a slot, shift
// or no shift, until Unsteer: so probes reach a candidate alone.
func (s *BPF) Steer(from netip.AddrPort, slot uint8) error { return s.node.Steer(from, slot) }

// Unsteer ends what Steer began.
func (s *BPF) Unsteer(from netip.AddrPort) error { return s.node.Unsteer(from) }

// Tables are descriptors of the maps, by names that tell their layout, for whoever
// keeps copies, see [Options.Kept]. They stay the steering's.
func (s *BPF) Tables() map[string]int { return s.node.Tables() }

// Detach leaves the groups to the kernel's hash, over the members that listen.
func (s *BPF) Detach() {
	for _, l := range s.all() {
		l.group.Detach(l.currentSink().FD)
	}
}

// Fill arms a slot: after it a probe or a shift may name it.
func (s *BPF) Fill(slot uint8, c *config.Config, sockets Sockets) error {
	return s.fill(slot, c, sockets, false)
}

// Refill is Fill on the listeners where the slot has nothing. Elsewhere it has what it
// had, though a socket may have been shut down meanwhile.
func (s *BPF) Refill(slot uint8, c *config.Config, sockets Sockets) error {
	return s.fill(slot, c, sockets, s.node.Armed(slot)) // else somebody died who was emptying it
}

func (s *BPF) fill(slot uint8, c *config.Config, sockets Sockets, missing bool) error {
	for _, conf := range c.Listeners {
		if !conf.Protocol.HasStreams() {
			continue
		}
		var fds []int
		for _, sock := range sockets[conf.Name] {
			fds = append(fds, sock.FD)
		}
		l := s.at(conf, false)
		if l == nil {
			return fmt.Errorf("there is no listener %s any more", conf.Name)
		}
		if missing {
			if has, err := l.group.Cookies(slot); err != nil || len(has) > 0 {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := l.group.Fill(slot, choiceOf(conf), fds); err != nil {
			return err
		}
	}
	return nil
}

// Empty makes a slot give nothing any more. An error would be of its memory.
func (s *BPF) Empty(slot uint8) { s.node.Empty(slot) }

// Shift is the store that moves new flows: one for each listener with a shift of its
// own, and one for all others. A listener that gets its own has it before the others
// move, and one that loses it goes with them.
func (s *BPF) Shift(all reuseport.Shift, own map[string]reuseport.Shift) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.ownShifts
	s.ownShifts = map[uint32]bool{}
	for name, word := range own {
		for _, number := range s.numbersOf(name) {
			s.node.SetShift(number, word)
			s.ownShifts[number] = true
		}
	}
	s.node.SetShift(reuseport.All, all)
	for number := range before {
		if !s.ownShifts[number] {
			s.node.ClearShift(number)
		}
	}
}

// numbersOf are a listener's numbers in the tables: of its streams and of its
// datagrams. s.mu is held.
func (s *BPF) numbersOf(name string) (all []uint32) {
	for _, l := range s.listeners {
		if l.conf.Name == name {
			all = append(all, l.group.Number())
		}
	}
	return all
}

// InSlot reports how many of the sockets are where they were put. A socket that
// its generation has shut down is not.
func (s *BPF) InSlot(slot uint8, c *config.Config, sockets Sockets) (in, all int, err error) {
	for _, conf := range c.Listeners {
		workers := sockets[conf.Name]
		l := s.at(conf, false)
		if l == nil {
			continue // it has no streams
		}
		cookies, err := l.group.Cookies(slot)
		if err != nil {
			return 0, 0, err
		}
		for w, sock := range workers {
			all++
			if w < len(cookies) && cookies[w] == sock.Cookie {
				in++
			}
		}
	}
	return in, all, nil
}

// Queued reads what is queued on each of some listening sockets, by cookie; a reading
// takes some 50 µs, however many sockets there are beside them.
func (s *BPF) Queued(sockets Sockets) (map[uint64]iter.Queue, error) {
	var cookies []uint64
	for _, workers := range sockets {
		for _, sock := range workers {
			cookies = append(cookies, sock.Cookie)
		}
	}
	s.queuesMu.Lock()
	defer s.queuesMu.Unlock()
	return s.queues.Read(cookies)
}

// Moved is what a slot got from listening sockets that closed, by listener.
func (s *BPF) Moved(slot uint8) (map[string]reuseport.Moved, error) {
	all, err := s.node.Moved()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	byName := map[string]reuseport.Moved{}
	for _, l := range s.all() {
		if m, ok := all[reuseport.Place{Slot: slot, Number: l.group.Number()}]; ok {
			byName[l.name] = m
		}
	}
	return byName, nil
}

// Known reports whether a listening socket is one of our sinks.
func (s *BPF) Known(cookie uint64) bool {
	_, ok := s.sinks.Load(cookie)
	return ok
}

// Close takes the pins away and closes everything.
func (s *BPF) Close() error {
	var err error
	if s.node != nil {
		err = s.node.Unpin()
	}
	if s.queues != nil {
		err = errors.Join(err, s.queues.Unpin())
	}
	return errors.Join(err, s.release())
}

// release closes what this process holds, and leaves what is pinned.
func (s *BPF) release() error {
	var errs []error
	for _, l := range s.all() {
		l.closeSink()
	}
	if s.queues != nil {
		errs = append(errs, s.queues.Close())
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	return errors.Join(errs...)
}

// InForce reads the words of the shift.
func (s *BPF) InForce() (all reuseport.Shift, own map[string]reuseport.Shift) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own = map[string]reuseport.Shift{}
	s.ownShifts = map[uint32]bool{}
	for number := range s.numbers { // also of an address that nobody has any more
		s.ownShifts[number] = s.node.Shift(number).Salt != 0
	}
	for _, l := range s.listeners {
		if number := l.group.Number(); s.ownShifts[number] {
			own[l.conf.Name] = s.node.Shift(number)
		}
	}
	return s.node.Shift(reuseport.All), own
}
