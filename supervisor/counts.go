package supervisor

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/state"
)

// ledgerEvery is how often the ledgers are read. A reading takes some 100 µs a
// generation; rings of records must not run over in between.
const ledgerEvery = 200 * time.Millisecond

// openAccount begins to count flows. Without it a release is judged by what else is known, and that is said.
func (s *Supervisor) openAccount(pins string) {
	if !s.steering.Chooses() || s.opts.Unsteered {
		return // generations share their sockets: a flow's socket does not tell whose it is
	}
	var err error
	s.kernel, err = account.OpenKernel(pins, func(id uint64) bool { // what the state file does not know of has ended
		return slices.ContainsFunc(s.state.Generations, func(g state.Generation) bool { return g.ID == id })
	}, s.log)
	if err != nil {
		s.log.Warn("no account of flows: releases are judged without it", "reason", err)
	}
}

// count opens the accounts of a generation before its first flow.
func (s *Supervisor) count(g *generation, adopted bool) {
	g.queues = account.NewQueues(s.steering, g.slot, g.sockets)
	g.closing = func() { g.queues.Read() } // their last word
	g.flows = s.kernel.Begin(g.id, g.sockets, adopted)
}

// newPhase marks, in the ledgers of both, the flows that come from now on: those
// alone are compared. What takes longer than all but one in a hundred did so far
// at the previous generation is slow from now on.
func (s *Supervisor) newPhase(r *release) {
	slow := ledger.DefaultSlow
	if r.previous != nil {
		slow = r.previous.book.Slow()
	}
	s.mu.Lock()
	r.candidate.harmedBefore = r.candidate.harmed()
	s.mu.Unlock()
	for _, g := range []*generation{r.previous, r.candidate} {
		if g != nil {
			g.book.BeginPhase(r.result.ID, slow)
		}
	}
}

// readLedgers reads the ledgers of all living generations until ctx ends.
func (s *Supervisor) readLedgers(ctx context.Context) {
	tick := time.NewTicker(ledgerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, b := range s.books() {
			b.Collect()
		}
		for _, q := range s.datagramQueues() {
			q.ReadDatagrams() // of what is lost with a socket the last reading stays
		}
	}
}

func (s *Supervisor) books() (all []*account.Book) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		if g.book != nil {
			all = append(all, g.book)
		}
	}
	return all
}

// datagramQueues are those of the generations that have any.
func (s *Supervisor) datagramQueues() (all []*account.Queues) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		if g.recipe != nil && slices.ContainsFunc(g.recipe.config.Listeners, config.Listener.HasDatagrams) {
			all = append(all, g.queues)
		}
	}
	return all
}

// endAccount adds the last counts of a generation. s.mu is held.
func (s *Supervisor) endAccount(g *generation) {
	for name, n := range g.queues.Dropped() {
		s.dropped[name] += n
	}
	if g.book == nil {
		return
	}
	last := g.book.Read()
	total := last.Total()
	s.counted.Add(&last)
	s.counted.Unfinished += total.InFlight
}

// Counted sums up all ledgers as they are now.
func (s *Supervisor) Counted() account.Counted {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counted.Clone()
	for _, g := range s.generations {
		if g.book != nil {
			now := g.book.Read()
			c.Add(&now)
		}
	}
	return c
}

// Exemplar finds a request of those labels whose duration is within the power of
// two of microseconds, see [ledger.Power].
func (s *Supervisor) Exemplar(labels account.RequestLabels, power int) (account.Exemplar, bool) {
	return s.exemplars.Find(labels, power)
}

// describeFlows fills in what the status says of flows. s.mu is held.
func (s *Supervisor) describeFlows(st *Status) {
	if !s.kernel.Counts() {
		return
	}
	byListener := s.kernel.Gone()
	for i, g := range s.generations {
		counts, err := g.flows.Read()
		if err != nil || len(counts) == 0 {
			continue
		}
		for name, c := range counts {
			before := byListener[name]
			before.Add(c)
			byListener[name] = before
		}
		all := account.Sum(counts)
		st.Generations[i].Flows, st.Generations[i].OpenFlows = account.Facts(all), all.Open()
	}
	for i := range st.Listeners {
		st.Listeners[i].Flows = account.Facts(byListener[st.Listeners[i].Name])
	}
}

// describeQueues fills in what the status says of queues. s.mu is held.
func (s *Supervisor) describeQueues(st *Status) {
	st.Namespace, _ = account.Namespace()
	dropped := maps.Clone(s.dropped)
	shared := !s.steering.Chooses()
	for i, g := range s.generations {
		queues, err := g.queues.Read()
		if err != nil {
			continue
		}
		for name, q := range queues {
			if shared { // all generations have the same sockets
				dropped[name] = max(dropped[name], q.Dropped)
				continue
			}
			dropped[name] += q.Dropped
			if q.QueueLengths != (account.QueueLengths{}) || q.Dropped > 0 || q.Moved != (reuseport.Moved{}) {
				if st.Generations[i].Queues == nil {
					st.Generations[i].Queues = map[string]account.QueueStatus{}
				}
				st.Generations[i].Queues[name] = q
			}
		}
		datagrams, err := g.queues.ReadDatagrams()
		if err != nil {
			continue
		}
		for name, q := range datagrams {
			dropped[name] += q.Dropped
			if q.Octets > 0 || q.Dropped > 0 {
				if st.Generations[i].Datagrams == nil {
					st.Generations[i].Datagrams = map[string]account.DatagramQueue{}
				}
				st.Generations[i].Datagrams[name] = q
			}
		}
	}
	for i := range st.Listeners {
		st.Listeners[i].Dropped = dropped[st.Listeners[i].Name]
	}
}
