package supervisor

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// QueueStatus is what waits for a generation at one listener, what found no room
// there, and what came from listening sockets that closed.
type QueueStatus struct {
	QueueLengths
	// Backlog is how many may wait to be accepted, at all its workers together; one
	// more is let in at each.
	Backlog int `json:"backlog"`
	// Dropped counts segments that its sockets let fall: handshakes that found a queue
	// full, each time that they were tried, and such as no listener has a use for, a
	// stray RST or FIN.
	Dropped uint64 `json:"dropped"`
	// Moved is what the kernel moved there, by the steering program's choice.
	Moved reuseport.Moved `json:"moved"`

	full bool // at one of its workers at least
}

// queuesOf reads the queues of a generation, by listener. Of sockets that have closed
// it is what was read last. The error is of the kernel's tables.
func (s *Supervisor) queuesOf(g *generation) (map[string]QueueStatus, error) {
	if g.leftover() || len(g.sockets) == 0 {
		return nil, nil
	}
	found, err := s.steering.Queued(g.sockets)
	if err != nil {
		return nil, err
	}
	all, err := s.steering.Moved(g.slot)
	if err != nil {
		return nil, err
	}
	g.queuesMu.Lock()
	defer g.queuesMu.Unlock()
	if g.queues == nil {
		g.queues = map[string]QueueStatus{}
	}
	for name, workers := range g.sockets {
		now := QueueStatus{Moved: all[name]}
		seen := 0
		for _, sock := range workers {
			q, ok := found[sock.Cookie]
			if !ok {
				continue
			}
			seen++
			now.HalfOpen += q.HalfOpen
			now.ToAccept += q.ToAccept
			now.Backlog += q.Backlog
			now.Dropped += uint64(q.Dropped)
			now.full = now.full || q.ToAccept > q.Backlog
		}
		last := g.queues[name]
		if seen < len(workers) {
			now.Dropped = max(now.Dropped, last.Dropped)
		}
		// An emptied slot has no tables any more.
		now.Moved.HalfOpen = max(now.Moved.HalfOpen, last.Moved.HalfOpen)
		now.Moved.ToAccept = max(now.Moved.ToAccept, last.Moved.ToAccept)
		g.queues[name] = now
	}
	return cloneQueues(g.queues), nil
}

func cloneQueues(of map[string]QueueStatus) map[string]QueueStatus {
	all := make(map[string]QueueStatus, len(of))
	for name, q := range of {
		all[name] = q
	}
	return all
}

// lastQueues is what was read of a generation last.
func (g *generation) lastQueues() map[string]QueueStatus {
	g.queuesMu.Lock()
	defer g.queuesMu.Unlock()
	return cloneQueues(g.queues)
}

// forgetQueues adds up what a generation that has gone has let fall.
func (a *accounts) forgetQueues(g *generation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dropped == nil {
		a.dropped = map[string]uint64{}
	}
	for name, q := range g.lastQueues() {
		a.dropped[name] += q.Dropped
	}
}

// describeQueues fills in what the status says of queues. s.mu is held.
func (s *Supervisor) describeQueues(st *Status) {
	st.Namespace, _ = readNamespace()
	dropped := map[string]uint64{}
	s.accounts.mu.Lock()
	for name, n := range s.accounts.dropped {
		dropped[name] = n
	}
	s.accounts.mu.Unlock()
	shared := !s.steering.Chooses()
	for i, g := range s.generations {
		queues, err := s.queuesOf(g)
		if err != nil {
			continue
		}
		for name, q := range queues {
			if shared { // all generations have the same sockets
				dropped[name] = max(dropped[name], q.Dropped)
				continue
			}
			dropped[name] += q.Dropped
			if q.QueueLengths != (QueueLengths{}) || q.Dropped > 0 || q.Moved != (reuseport.Moved{}) {
				if st.Generations[i].Queues == nil {
					st.Generations[i].Queues = map[string]QueueStatus{}
				}
				st.Generations[i].Queues[name] = q
			}
		}
	}
	for i := range st.Listeners {
		st.Listeners[i].Dropped = dropped[st.Listeners[i].Name]
	}
}

// namespaceEvents are counters of the network namespace, as metrics name them and as
// /proc/net/netstat does (net/ipv4/proc.c). They are of all its sockets.
var namespaceEvents = map[string]string{
	"listen_overflows":       "ListenOverflows", // an accept queue was full
	"listen_drops":           "ListenDrops",     // that, and whatever else a listening socket let fall
	"half_open_overflows":    "TCPReqQFullDrop", // too many handshakes were half open, and no cookie was sent
	"half_open_cookies":      "TCPReqQFullDoCookies",
	"migrations":             "TCPMigrateReqSuccess",
	"migrations_that_failed": "TCPMigrateReqFailure",
}

// readNamespace reads them of this thread's namespace, in which the listeners are.
func readNamespace() (map[string]uint64, error) {
	text, err := os.ReadFile("/proc/thread-self/net/netstat")
	if err != nil {
		return nil, err
	}
	return parseNamespace(string(text))
}

func parseNamespace(text string) (map[string]uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if len(fields) != len(names) {
			break
		}
		all := make(map[string]uint64, len(namespaceEvents))
		for event, name := range namespaceEvents {
			if i := slices.Index(names, name); i > 0 {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				all[event] = n
			}
		}
		return all, nil
	}
	return nil, fmt.Errorf("/proc/net/netstat has no two lines of TcpExt that go together")
}

// overflows are the handshakes that the namespace has let fall for want of room.
func overflows(namespace map[string]uint64) uint64 {
	return namespace["listen_overflows"] + namespace["half_open_overflows"]
}

// queued: a candidate whose queues run over keeps clients waiting for a second and
// more. The kernel counts what a listening socket let fall, whatever it was, and for
// the namespace what found a queue full. So it takes three to prove it: one of its
// sockets is full, it has let something fall, and a queue has run over meanwhile.
func (w *watch) queuesHeld() Finding {
	if w.first().sides[w.candidate].queues == nil {
		return unjudged("its queues are not its own")
	}
	now, then := w.now().sides[w.candidate].queues, w.first().sides[w.candidate].queues
	var dropped, handshakes, connections uint64
	for name, q := range now {
		dropped += less(q.Dropped, then[name].Dropped)
		handshakes += less(q.Moved.HalfOpen, then[name].Moved.HalfOpen)
		connections += less(q.Moved.ToAccept, then[name].Moved.ToAccept)
	}
	ran := less(overflows(w.now().namespace), overflows(w.first().namespace))
	words := fmt.Sprintf("%d segments were dropped at its listeners, and a queue of this network namespace ran over %d times; %d handshakes and %d connections were moved to it", dropped, ran, handshakes, connections)
	name, most := w.ranOver()
	if most == 0 {
		return held("%s", words)
	}
	for of, q := range w.now().sides[w.previous].queues {
		if q.Dropped > 0 {
			return unjudged("%s; those of generation %d dropped %d at listener %s, so it may be the clients", words, w.previous.id, q.Dropped, of)
		}
	}
	return violated("the accept queue of listener %s was full, with %d waiting, and dropped %d segments; generation %d never dropped one", name, now[name].ToAccept, most, w.previous.id)
}

// ranOver is the candidate's listener that dropped most while its queue was full and
// queues ran over.
func (w *watch) ranOver() (name string, most uint64) {
	for i := 1; i < len(w.readings); i++ {
		before, now := &w.readings[i-1], &w.readings[i]
		if overflows(now.namespace) <= overflows(before.namespace) {
			continue
		}
		for of, q := range now.sides[w.candidate].queues {
			last := before.sides[w.candidate].queues[of]
			if n := less(q.Dropped, last.Dropped); n > most && q.full {
				name, most = of, n
			}
		}
	}
	return name, most
}
