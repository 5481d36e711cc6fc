package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// A listener of the node is an address of TCP or UDP: two names for it are one
// listener, and one name that moves is two. It is open as long as somebody in the
// shift serves it; a client that comes before or after is refused by the steering
// program, and no sink keeps it waiting.

// addresses are the listeners of one configuration.
type addresses map[reuseport.Address]bool

func addressOf(l config.Listener, udp bool) reuseport.Address {
	return reuseport.Address{AddrPort: l.AddrPort(), DualStack: l.DualStack, UDP: udp}
}

// halves are the listeners of the node that one of a configuration is: false for
// TCP, true for UDP, both where http3 shares the port.
func halves(l config.Listener) (udp []bool) {
	if l.Protocol.HasStreams() {
		udp = append(udp, false)
	}
	if l.HasDatagrams() {
		udp = append(udp, true)
	}
	return udp
}

func addressesOf(c *config.Config) addresses {
	all := addresses{}
	for _, l := range c.Listeners {
		for _, udp := range halves(l) {
			all[addressOf(l, udp)] = true
		}
	}
	return all
}

// nameOf is what a listener's sockets are called where they are handed over.
func nameOf(l config.Listener, udp bool) string {
	if udp {
		return l.Name + contract.UDPSuffix
	}
	return l.Name
}

// spokenOn is what is spoken there: http3 beside the https of the same name.
func spokenOn(l config.Listener, udp bool) config.Protocol {
	if udp && l.Protocol != config.UDP {
		return "http3"
	}
	return l.Protocol
}

// all are the listeners as they are now.
func (s *steering) all() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.listeners)
}

// at finds a listener.
func (s *steering) at(l config.Listener, udp bool) *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byAddress[addressOf(l, udp)]
}

// admit makes the listeners of a configuration that are not there yet, closed:
// the program is on the group before a candidate's socket joins it.
func (s *steering) admit(c *config.Config) error {
	return s.addAll(c.Listeners, false)
}

func (s *steering) addAll(all []config.Listener, open bool) error {
	for _, conf := range all {
		for _, udp := range halves(conf) {
			if l := s.at(conf, udp); l != nil {
				if err := s.remember(l, forget(conf)); err != nil {
					return err
				}
				continue
			}
			if err := s.add(conf, udp, open); err != nil {
				return err
			}
		}
	}
	return nil
}

// remember keeps the flows of a listener of UDP together for the longest silence
// that one of its generations has ever waited: they end there, and not in the tables.
func (s *steering) remember(l *listener, silence time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, err := l.group.Remembers()
	if err != nil || silence <= known {
		return err
	}
	return l.group.Remember(silence)
}

func (s *steering) add(conf config.Listener, udp, open bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	address := addressOf(conf, udp)
	if udp {
		if err := s.datagrams.load(); err != nil {
			return err
		}
		address.Forget = forget(conf)
	}
	number, err := s.node.Number(address)
	found := number != 0 // an earlier supervisor's, whose slots are filled under it
	if !found && err == nil {
		number, err = s.freeNumber()
	}
	if err != nil {
		return err
	}
	group, err := s.node.Group(number, address)
	if err != nil {
		return err
	}
	l := &listener{name: nameOf(conf, udp), address: conf.Address, protocol: spokenOn(conf, udp), udp: udp, conf: conf, group: group, sink: socket{fd: -1}, open: open}
	if s.attach { // a sink without a program would take its share of flows
		makeSink := s.renewSink
		if udp {
			makeSink = silence
		}
		if err := makeSink(l); err != nil {
			if !found { // else generations serve by it
				err = errors.Join(err, group.Remove())
			}
			return err
		}
	}
	l.lostBefore = l.lost()
	s.listeners = append(s.listeners, l)
	s.byAddress[l.at()] = l
	s.numbers[number] = true
	return nil
}

// freeNumber goes round, so that a number rests as long as possible. s.mu is held.
func (s *steering) freeNumber() (uint32, error) {
	for range reuseport.MaxListeners {
		s.lastNumber = s.lastNumber%reuseport.MaxListeners + 1
		if !s.numbers[s.lastNumber] {
			return s.lastNumber, nil
		}
	}
	return 0, fmt.Errorf("%d listeners, those of generations that drain among them: there are no more", reuseport.MaxListeners)
}

// shut closes the listeners that nobody of those given serves. It comes before
// the shift that leaves them.
func (s *steering) shut(serving ...addresses) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range serving {
		if len(one) == len(s.listeners) {
			return // all of them
		}
	}
	for _, l := range s.listeners {
		if !l.open || served(l.at(), serving) {
			continue
		}
		l.open, l.lostBefore = false, l.lost()
		s.node.ClearSink(l.group.Number())
	}
}

func served(at reuseport.Address, by []addresses) bool {
	return slices.ContainsFunc(by, func(one addresses) bool { return one[at] })
}

// isShut reports whether any listener is closed.
func (s *steering) isShut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.listeners, func(l *listener) bool { return !l.open })
}

// unshut opens the listeners that one of those given serves. It comes when no
// packet is on its way by the shift before.
func (s *steering) unshut(serving ...addresses) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range s.listeners {
		if l.open || !served(l.at(), serving) {
			continue
		}
		s.refused += less(l.lost(), l.lostBefore)
		l.open = true
		if s.attach {
			errs = append(errs, l.group.SetSink(l.currentSink().fd))
		}
	}
	return errors.Join(errs...)
}

// forget takes the closed listeners away that no living generation has.
func (s *steering) forget(living ...addresses) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	s.listeners = slices.DeleteFunc(s.listeners, func(l *listener) bool {
		at := l.at()
		if l.open || served(at, living) {
			return false
		}
		s.refused += less(l.lost(), l.lostBefore)
		l.sinkMu.Lock()
		s.sinks.Delete(l.sink.cookie)
		l.sinkMu.Unlock()
		l.closeSink()
		errs = append(errs, l.group.Remove())
		delete(s.byAddress, at)
		delete(s.numbers, l.group.Number())
		return true
	})
	return errors.Join(errs...)
}

// rename calls the listeners as a configuration does, all or only some, and bounds
// their sinks so.
func (s *steering) rename(c *config.Config, only []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conf := range c.Listeners {
		if only != nil && !slices.Contains(only, conf.Name) {
			continue
		}
		for _, udp := range halves(conf) {
			l := s.byAddress[addressOf(conf, udp)]
			if l == nil {
				continue
			}
			l.name, l.protocol = nameOf(conf, udp), spokenOn(conf, udp)
			l.sinkMu.Lock()
			l.conf.Name, l.conf.Backlog = conf.Name, conf.Backlog
			l.sinkMu.Unlock()
		}
	}
}

// at is what the listener is known by.
func (l *listener) at() reuseport.Address { return addressOf(l.conf, l.udp) }

// lost is how many runs on the listener found nobody.
func (l *listener) lost() uint64 {
	counts, err := l.group.Counters()
	if err != nil {
		return l.lostBefore
	}
	return counts[reuseport.Lost]
}

// counts sums one slot's counters. Who was refused by a closed listener is not
// lost.
func (s *steering) counts(slot int) (reuseport.Counts, error) {
	counts, err := s.node.Counters(slot)
	if err != nil || slot != reuseport.NoSlot {
		return counts, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	refused := s.refused
	for _, l := range s.listeners {
		if !l.open {
			refused += less(l.lost(), l.lostBefore)
		}
	}
	counts[reuseport.Lost] = less(counts[reuseport.Lost], refused)
	return counts, nil
}

// overlaps names the listeners of a configuration that would share connections
// with one that is still there: the more specific of the two would get them.
func (s *steering) overlaps(c *config.Config) (problems []string) {
	all := s.all()
	for _, conf := range c.Listeners {
		for _, udp := range halves(conf) {
			have := s.at(conf, udp)
			if have != nil && (conf.Protocol == config.UDP) == (have.conf.Protocol == config.UDP) {
				continue // QUIC and other datagrams are told apart by the address
			}
			for _, other := range all {
				if other.udp == udp && ports.Overlap(conf.AddrPort(), conf.DualStack, other.conf.AddrPort(), other.conf.DualStack) {
					problems = append(problems, fmt.Sprintf("listener %s on %s overlaps %s, which is served until its last generation has ended: take it out by one release and add this one by another", conf.Name, conf.Address, other.address))
					break
				}
			}
		}
	}
	return problems
}

// forgetListeners gives the addresses back that nobody needs any more. s.mu is held.
func (s *Supervisor) forgetListeners() {
	by, ok := s.steering.(*steering)
	if !ok || s.shift.current == nil || !by.isShut() {
		return // while nobody serves, clients wait wherever somebody may
	}
	var living []addresses
	for _, g := range s.generations {
		if !g.leftover() {
			living = append(living, g.recipe.addresses)
		}
	}
	if r := s.running; r != nil && r.wants != nil {
		living = append(living, r.wants)
	}
	if err := by.forget(living...); err != nil {
		s.log.Error("give listeners back", "error", err)
	}
}

// openListeners opens those that the release adds, now that it has flows.
func (s *Supervisor) openListeners() error {
	by, ok := s.steering.(*steering)
	if !ok || !by.isShut() {
		return nil
	}
	if err := by.node.Fence(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return by.unshut(s.shift.addresses()...)
}

// openAdopted opens the listeners of who was found to serve, under their names, and
// gives them who came before that was known. With nobody in the shift those of the file
// open, as they do at a first start.
func (s *Supervisor) openAdopted() error {
	by, ok := s.steering.(*steering)
	if !ok {
		return nil
	}
	if err := by.node.Fence(); err != nil { // an interrupted release may just have been undone
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.shift.current; g != nil {
		by.rename(g.recipe.config, nil)
		return errors.Join(by.unshut(s.shift.addresses()...), by.emptySinks())
	}
	return by.unshut(addressesOf(s.config))
}

// adoptedListeners are those of the configuration, and then those that only other
// adopted generations have: they drain, or are held for a rollback.
func (s *Supervisor) adoptedListeners() []config.Listener {
	all := slices.Clone(s.config.Listeners)
	for _, g := range s.generations {
		if !g.leftover() {
			all = append(all, g.recipe.config.Listeners...)
		}
	}
	return all
}

// numberInIDs is the node's number in connection IDs: that of the connections which
// adopted generations have, whatever the file says by now.
func (s *Supervisor) numberInIDs() uint32 {
	for _, g := range s.generations {
		if !g.leftover() && slices.ContainsFunc(g.recipe.config.Listeners, config.Listener.HasDatagrams) {
			return g.recipe.config.Node.ServerID
		}
	}
	return s.config.Node.ServerID
}

// addresses are the listeners of who is in the shift.
func (f *shiftInForce) addresses() (all []addresses) {
	for _, g := range []*generation{f.current, f.other} {
		if g != nil && !g.leftover() {
			all = append(all, g.recipe.addresses)
		}
	}
	return all
}

// admit makes room for the listeners of a candidate.
func (s *Supervisor) admit(r *release) error {
	by, ok := s.steering.(*steering)
	if !ok {
		return nil
	}
	s.mu.Lock()
	r.wants = r.recipe.addresses
	s.mu.Unlock()
	return by.admit(r.recipe.config)
}

// sameListeners refuses what a release cannot change.
func (s *Supervisor) sameListeners(c *config.Config) []string {
	by, ok := s.steering.(*steering)
	if ok {
		return by.overlaps(c)
	}
	var problems []string
	wanted := make(map[string]config.Listener, len(c.Listeners))
	for _, l := range c.Listeners {
		wanted[l.Name] = l
	}
	had := map[string]bool{}
	for _, have := range s.config.Listeners {
		had[have.Name] = true
		want, ok := wanted[have.Name]
		switch {
		case !ok:
			problems = append(problems, fmt.Sprintf("listener %s would be removed: that needs a restart of the supervisor", have.Name))
		case want.Address != have.Address || want.DualStack != have.DualStack:
			problems = append(problems, fmt.Sprintf("listener %s would move from %s to %s: that needs a restart of the supervisor", have.Name, have.Address, want.Address))
		}
	}
	for _, want := range c.Listeners {
		if !had[want.Name] {
			problems = append(problems, fmt.Sprintf("listener %s would be added in takeover mode: that needs a restart of the supervisor", want.Name))
		}
	}
	return problems
}
