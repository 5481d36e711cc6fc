package steer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// all are the listeners as they are now.
func (s *BPF) all() []*listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.listeners)
}

// at finds a listener.
func (s *BPF) at(l config.Listener, udp bool) *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byAddress[addressOf(l, udp)]
}

// Admit makes the listeners of a configuration that are not there yet, closed:
// the program is on the group before a candidate's socket joins it.
func (s *BPF) Admit(c *config.Config) error {
	return s.addAll(c.Listeners, false)
}

func (s *BPF) addAll(all []config.Listener, open bool) error {
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
func (s *BPF) remember(l *listener, silence time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, err := l.group.Remembers()
	if err != nil || silence <= known {
		return err
	}
	return l.group.Remember(silence)
}

func (s *BPF) add(conf config.Listener, udp, open bool) error {
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
	l := &listener{name: nameOf(conf, udp), address: conf.Address, protocol: spokenOn(conf, udp), udp: udp, conf: conf, group: group, sink: Socket{FD: -1}, open: open}
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
func (s *BPF) freeNumber() (uint32, error) {
	for range reuseport.MaxListeners {
		s.lastNumber = s.lastNumber%reuseport.MaxListeners + 1
		if !s.numbers[s.lastNumber] {
			return s.lastNumber, nil
		}
	}
	return 0, fmt.Errorf("%d listeners, those of generations that drain among them: there are no more", reuseport.MaxListeners)
}

// Shut closes the listeners that nobody of those given serves. It comes before
// the shift that leaves them.
func (s *BPF) Shut(serving ...Addresses) {
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

// AnyShut reports whether any listener is closed.
func (s *BPF) AnyShut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.listeners, func(l *listener) bool { return !l.open })
}

// Open opens the listeners that one of those given serves. It comes when no
// packet is on its way by the shift before.
func (s *BPF) Open(serving ...Addresses) error {
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
			errs = append(errs, l.group.SetSink(l.currentSink().FD))
		}
	}
	return errors.Join(errs...)
}

// Forget takes the closed listeners away that no living generation has.
func (s *BPF) Forget(living ...Addresses) error {
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
		s.sinks.Delete(l.sink.Cookie)
		l.sinkMu.Unlock()
		l.closeSink()
		errs = append(errs, l.group.Remove())
		delete(s.byAddress, at)
		delete(s.numbers, l.group.Number())
		return true
	})
	return errors.Join(errs...)
}

// Rename calls the listeners as a configuration does, all or only some, and bounds
// their sinks so.
func (s *BPF) Rename(c *config.Config, only []string) {
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

// Conflicts names the listeners of a configuration that would share connections
// with one that is still there: the more specific of the two would get them.
func (s *BPF) Conflicts(c *config.Config) (problems []string) {
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
