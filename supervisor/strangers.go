package supervisor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/supervisor/state"
)

// refuseStrangers looks for sockets of others that overlap our listeners: a
// more specific one would take flows silently, and one in our own group would
// get them if the group ever lost its program.
func (s *Supervisor) refuseStrangers(c *config.Config) error {
	streams, err := s.strangeStreams(c)
	if err != nil {
		return err
	}
	datagrams, err := s.strangeDatagrams(c)
	if err != nil {
		return err
	}
	return errors.Join(append(streams, datagrams...)...)
}

func (s *Supervisor) strangeStreams(c *config.Config) (problems []error, err error) {
	ours := s.leftCookies()
	leftovers := map[int]bool{}
	s.mu.Lock()
	for _, g := range s.generations {
		leftovers[g.process.PID] = g.leftover()
		for _, workers := range g.sockets {
			for _, sock := range workers {
				ours[sock.Cookie] = true
			}
		}
		for _, cookies := range g.stood { // of which we may have no copy: it closes them when it is told
			for _, cookie := range cookies {
				ours[cookie] = true
			}
		}
	}
	s.mu.Unlock()

	unknown, err := ports.Unknown(func(cookie uint64) bool {
		return ours[cookie] || s.steering != nil && s.steering.Known(cookie)
	})
	if err != nil {
		return nil, fmt.Errorf("look for others on our ports: %w", err)
	}
	for _, l := range c.Listeners {
		if !l.Protocol.HasStreams() {
			continue
		}
		strangers := ports.Overlapping(unknown, l.AddrPort(), l.DualStack)
		if err := ports.FindProcesses(strangers); err != nil {
			return nil, err
		}
		for _, h := range strangers {
			if !s.heldBy(h, leftovers) {
				problems = append(problems, fmt.Errorf("listener %s on %s: %s listens on %s: end it, or choose another address", l.Name, l.Address, whoHas(h), h.Address))
			}
		}
	}
	return problems, nil
}

// strangeDatagrams does the same for sockets of UDP. There a second member of the
// kernel's group is worse than a loss of what is new: another supervisor's program
// on it would take the packets of every flow. Those of generations are known by their
// processes, for nobody else has a copy. One that no process has is being closed in most cases,
// by a generation that has ended since it was listed: it gets time to go.
func (s *Supervisor) strangeDatagrams(c *config.Config) (problems []error, err error) {
	if !slices.ContainsFunc(c.Listeners, config.Listener.HasDatagrams) {
		return nil, nil
	}
	for begun := time.Now(); ; time.Sleep(queuePoll) {
		problems, closing, err := s.lookForDatagrams(c)
		if err != nil || !closing || time.Since(begun) > closingTime {
			return problems, err
		}
	}
}

// closingTime is how long a socket may be nobody's.
const closingTime = 5 * time.Second

// lookForDatagrams looks once. closing: one of the strangers is a socket that no process has.
func (s *Supervisor) lookForDatagrams(c *config.Config) (problems []error, closing bool, err error) {
	// Before the look: one that ends during it is still seen, and ours no more.
	ours := map[int]bool{os.Getpid(): true} // the sinks
	s.mu.Lock()
	for _, g := range s.generations {
		ours[g.process.PID] = true
	}
	s.mu.Unlock()
	bound, err := ports.Datagrams()
	if err != nil {
		return nil, false, fmt.Errorf("look for others on our ports of UDP: %w", err)
	}
	type overlap struct {
		of   config.Listener
		with int // in met
	}
	var met []ports.Holder
	var overlaps []overlap
	for _, l := range c.Listeners {
		if !l.HasDatagrams() {
			continue
		}
		for _, h := range ports.Overlapping(bound, l.AddrPort(), l.DualStack) {
			at := slices.IndexFunc(met, func(m ports.Holder) bool { return m.Cookie == h.Cookie })
			if at < 0 {
				at, met = len(met), append(met, h)
			}
			overlaps = append(overlaps, overlap{l, at})
		}
	}
	if err := ports.FindProcesses(met); err != nil { // once: it walks over all of /proc
		return nil, false, err
	}
	for _, o := range overlaps {
		if h := met[o.with]; !s.heldBy(h, ours) {
			problems = append(problems, fmt.Errorf("listener %s on %s: %s takes datagrams on %s: end it, or choose another address", o.of.Name, o.of.Address, whoHas(h), h.Address))
			closing = closing || len(h.Processes) == 0
		}
	}
	return problems, closing, nil
}

// heldBy reports whether one of some processes has the socket, or any of a generation's
// cgroup.
func (s *Supervisor) heldBy(h ports.Holder, processes map[int]bool) bool {
	return slices.ContainsFunc(h.Processes, func(p ports.Process) bool {
		return processes[p.PID] || s.cgroups != nil && s.cgroups.Has(p.PID)
	})
}

func whoHas(h ports.Holder) string {
	if len(h.Processes) == 0 {
		return "a process that /proc does not show"
	}
	return fmt.Sprintf("%s (pid %d)", h.Processes[0].Comm, h.Processes[0].PID)
}

// warnOfNumber tells of another supervisor of this host with our number. On the host
// nothing of the two meets; whoever leads packets by the number cannot tell them apart.
func (s *Supervisor) warnOfNumber() {
	for _, other := range state.AllRunning() {
		if other.PID != os.Getpid() && other.Record.ServerID == s.config.Node.ServerID {
			s.log.Warn("another supervisor of this host has the same node.server_id: a balancer cannot tell the two apart", "server_id", other.Record.ServerID, "pid", other.PID, "runtime_dir", other.RuntimeDir)
		}
	}
}
