package steer

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/supervisor/spawn"
)

// Takeover is the mode without BPF (docs/decisions/017). Each listener has one
// socket, which the supervisor keeps and every generation gets, so they all
// accept from one queue. What that means:
//
//   - The queue is nobody's: neither a generation that stops nor one that dies
//     takes a connection with it that it has not accepted.
//   - A new flow goes to whoever accepts first. A candidate has its share from
//     the moment it accepts, and the old generation until it is told to stop,
//     which it is after the verdict.
//   - A generation that shuts a socket down (shutdown(2)) does so for all. The
//     supervisor listens again; what was queued has been reset by then. The
//     youngest is taken to have done it: the others have behaved for longer.
type Takeover struct {
	nonblocking bool              // of the one file description that all generations share
	listeners   []config.Listener // as they are until the supervisor ends

	mu     sync.Mutex
	shared []sharedSocket // in the order of the file; none after CloseSinks
	armed  []slotUse      // who accepts, the youngest last
}

// slotUse is a generation that has the sockets.
type slotUse struct {
	slot uint8
	down int // times a socket was found shut down while it was the youngest
}

// sharedSocket is the supervisor's own descriptor of a listener.
type sharedSocket struct {
	Socket
	conf config.Listener
}

// Left is a generation of an earlier supervisor that lives.
type Left struct {
	Generation uint64
	Serving    bool
	Process    *spawn.Process
	Sockets    Sockets // as far as the keeper had them; they stay the caller's
}

// OpenTakeover makes a socket for each listener of a configuration, or takes those that
// a generation of an earlier supervisor serves, or that nobody has claimed: descriptors
// by listener, of generations that have ended. Where that cannot be, both listen side by
// side until the earlier one has been drained, and log says so. It refuses listeners of
// datagrams.
func OpenTakeover(c *config.Config, left []Left, unclaimed map[string][]int, log *slog.Logger) (_ *Takeover, err error) {
	if err := withoutDatagrams(c, config.SteeringTakeover); err != nil {
		return nil, err
	}
	t := &Takeover{nonblocking: c.Proxy.Nonblocking, listeners: c.Listeners}
	for _, conf := range c.Listeners {
		s, err := inherit(conf, t.nonblocking, left, unclaimed)
		if err != nil {
			s, err = adopt(conf, t.nonblocking, left)
		}
		if err != nil {
			if !errors.Is(err, errNoneLeft) {
				log.Warn("what an earlier supervisor left keeps its own queue until it is drained", "listener", conf.Name, "reason", err)
			}
			s, err = bind(conf, t.nonblocking)
		}
		if err == nil {
			t.shared = append(t.shared, sharedSocket{s, conf})
			err = s.listen(conf.Backlog)
		}
		if err != nil {
			t.Close()
			return nil, err
		}
	}
	return t, nil
}

// Mode is config.SteeringTakeover.
func (t *Takeover) Mode() config.Steering { return config.SteeringTakeover }

// Chooses is false: the kernel gives a flow to whoever accepts first.
func (t *Takeover) Chooses() bool { return false }

// Refuse names what sharing rules out: a share of new flows by weight, and
// another blocking mode, which would change under the generations that live.
func (t *Takeover) Refuse(r Asked) error {
	var errs []error
	if r.Some {
		errs = append(errs, errors.New("takeover mode cannot move the flows of some listeners alone: the kernel gives each flow to whoever accepts first; release all"))
	}
	for _, share := range r.Ramp {
		if share < 1 {
			errs = append(errs, fmt.Errorf("the ramp gives the candidate %v of new flows, and takeover mode cannot: the kernel gives each flow to whoever accepts first; make the ramp 100%%", share))
			break
		}
	}
	if r.Config.Proxy.Nonblocking != t.nonblocking {
		errs = append(errs, fmt.Errorf("proxy.nonblocking would become %v: in takeover mode the generations share their sockets, so that needs a restart of the supervisor", !t.nonblocking))
	}
	return errors.Join(errs...)
}

// Bind duplicates the shared sockets. One a listener, whatever its workers: a
// second would only be another name of the same queue.
func (t *Takeover) Bind(c *config.Config) (all Sockets, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all = make(Sockets, len(c.Listeners))
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
	for _, conf := range c.Listeners {
		s := t.named(conf.Name)
		if s == nil {
			return nil, fmt.Errorf("listener %s has no socket", conf.Name)
		}
		fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("duplicate the socket of listener %s: %w", conf.Name, err)
		}
		all[conf.Name] = []Socket{{fd, s.Cookie}}
		// A socket that listens takes another backlog.
		if err := s.listen(conf.Backlog); err != nil {
			return nil, fmt.Errorf("listener %s: %w", conf.Name, err)
		}
		s.conf.Backlog = conf.Backlog
	}
	return all, nil
}

// named finds a listener's socket. t.mu is held.
func (t *Takeover) named(name string) *sharedSocket {
	for i := range t.shared {
		if t.shared[i].conf.Name == name {
			return &t.shared[i]
		}
	}
	return nil
}

// Fill notes who accepts; there is nothing to arm.
func (t *Takeover) Fill(slot uint8, _ *config.Config, _ Sockets) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = append(t.armed, slotUse{slot: slot})
	return nil
}

// Refill is Fill: nobody but this process knows who accepts.
func (t *Takeover) Refill(slot uint8, c *config.Config, sockets Sockets) error {
	return t.Fill(slot, c, sockets)
}

// Empty notes who accepts no more.
func (t *Takeover) Empty(slot uint8) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = slices.DeleteFunc(t.armed, func(u slotUse) bool { return u.slot == slot })
}

// BindDatagrams refuses them: a socket that two generations read has no flow of either.
func (t *Takeover) BindDatagrams(c *config.Config) (Sockets, error) {
	return nil, withoutDatagrams(c, config.SteeringTakeover)
}

// What a program does has no counterpart here: there is nothing to move, nothing on its
// way, nothing counted, and no sink.

func (t *Takeover) FillDatagrams(uint8, *config.Config, Sockets) error             { return nil }
func (t *Takeover) EmptyDatagrams(uint8)                                           {}
func (t *Takeover) Shift(reuseport.Shift, map[string]reuseport.Shift)              {}
func (t *Takeover) Fence() error                                                   { return nil }
func (t *Takeover) Moved(uint8) (map[string]reuseport.Moved, error)                { return nil, nil }
func (t *Takeover) Buffers(uint8) (map[string]ports.Buffer, error)                 { return nil, nil }
func (t *Takeover) Counts(int) (reuseport.Counts, error)                           { return reuseport.Counts{}, nil }
func (t *Takeover) EmptySinks() error                                              { return nil }
func (t *Takeover) Detach()                                                        {}
func (t *Takeover) InForce() (all reuseport.Shift, own map[string]reuseport.Shift) { return }
func (t *Takeover) Prober() Prober                                                 { return nil }
func (t *Takeover) Tables() map[string]int                                         { return nil }

// Listeners stay as they are, and are open.

func (t *Takeover) Admit(*config.Config) error      { return nil }
func (t *Takeover) Shut(...Addresses)               {}
func (t *Takeover) AnyShut() bool                   { return false }
func (t *Takeover) Open(...Addresses) error         { return nil }
func (t *Takeover) Forget(...Addresses) error       { return nil }
func (t *Takeover) Rename(*config.Config, []string) {}

// Conflicts names every change of the listeners.
func (t *Takeover) Conflicts(c *config.Config) []string {
	var problems []string
	wanted := make(map[string]config.Listener, len(c.Listeners))
	for _, l := range c.Listeners {
		wanted[l.Name] = l
	}
	had := map[string]bool{}
	for _, have := range t.listeners {
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

// InSlot counts the sockets that a generation has not shut down. One that was
// listens again when it returns.
func (t *Takeover) InSlot(slot uint8, _ *config.Config, sockets Sockets) (in, all int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, workers := range sockets {
		all += len(workers)
		s := t.named(name)
		if s == nil {
			continue
		}
		listening, err := unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return 0, 0, fmt.Errorf("ask whether listener %s listens: %w", name, err)
		}
		if listening != 0 {
			continue
		}
		if err := s.listen(s.conf.Backlog); err != nil {
			return 0, 0, fmt.Errorf("listener %s was shut down; listening again: %w", name, err)
		}
		if n := len(t.armed); n > 0 {
			t.armed[n-1].down++
		}
	}
	in = all
	for _, u := range t.armed {
		if u.slot == slot {
			in -= min(u.down, all)
		}
	}
	return in, all, nil
}

// Queued reads the lengths of the accept queues. A handshake that is half open
// belongs to nobody either; it is not counted.
func (t *Takeover) Queued(sockets Sockets) (map[uint64]iter.Queue, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := map[uint64]iter.Queue{}
	for name := range sockets {
		s := t.named(name)
		if s == nil {
			continue
		}
		// Of a listening socket tcpi_unacked is the length of its accept queue, and
		// tcpi_sacked its bound
		// (tcp_get_info, net/ipv4/tcp.c).
		info, err := unix.GetsockoptTCPInfo(s.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return nil, fmt.Errorf("read the queue of listener %s: %w", name, err)
		}
		dropped, err := s.dropped()
		if err != nil {
			return nil, fmt.Errorf("read what listener %s dropped: %w", name, err)
		}
		found[s.Cookie] = iter.Queue{ToAccept: int(info.Unacked), Backlog: int(info.Sacked), Dropped: dropped}
	}
	return found, nil
}

// Known reports whether a listening socket is one that is shared.
func (t *Takeover) Known(cookie uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.shared {
		if s.Cookie == cookie {
			return true
		}
	}
	return false
}

// Describe tells of the listeners; nothing is counted.
func (t *Takeover) Describe(int) (all []Listener, _ []SlotRuns) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.shared {
		all = append(all, Listener{Name: s.conf.Name, Address: s.conf.Address, Protocol: s.conf.Protocol})
	}
	return all, nil
}

// CloseSinks closes the supervisor's own descriptors: when the last generation
// has stopped, nobody listens.
func (t *Takeover) CloseSinks() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.shared {
		s.close()
	}
	t.shared = nil
}

// Close is CloseSinks. It does not fail.
func (t *Takeover) Close() error {
	t.CloseSinks()
	return nil
}
