package supervisor

import (
	"errors"
	"slices"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/judge"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// read adds a reading to the case. Each side is read in the order that its fields ask for:
// what explains a flow is never older than the flow.
func (w *watch) read() (err error) {
	now := judge.Reading{At: time.Now(), Sides: map[uint64]judge.Side{}}
	if now.NoSlot, err = w.s.steering.Counts(reuseport.NoSlot); err != nil {
		return err
	}
	w.s.mu.Lock()
	all := append([]*generation(nil), w.s.generations...)
	w.s.mu.Unlock()
	for _, g := range append(all, w.candidate, w.previous) {
		if _, twice := now.Sides[g.id]; twice || g.leftover() {
			continue
		}
		sd := judge.Side{Slot: g.slot, Probed: g.probed.Load(), Whole: g.flows.Whole()}
		counts, err := w.readFlows(g, &sd)
		if err != nil && (g == w.candidate || g == w.previous && g.alive()) {
			now.Err = err
		}
		if sd.Runs, err = w.s.steering.Counts(int(g.slot)); err != nil {
			return err
		}
		if g == w.candidate || g == w.previous {
			if err := w.readOwn(g, &sd, counts); err != nil {
				return err
			}
		}
		w.readDatagrams(g, &sd)
		w.readLife(g, &sd)
		now.Sides[g.id] = sd
	}
	now.Namespace, _ = account.Namespace()
	now.Resources = resourcesOf(w.candidate.process.PID)
	w.Add(now)
	w.reopen()
	return nil
}

// readFlows reads what the kernel has counted of a generation, where it counts.
func (w *watch) readFlows(g *generation, sd *judge.Side) (map[string]flows.Counts, error) {
	counts, err := g.flows.Read()
	if errors.Is(err, account.ErrNoFlows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sd.Established = make(map[string]uint64, len(counts))
	for _, l := range g.recipe.config.Listeners {
		c := counts[l.Name]
		sd.Established[l.Name] = c[flows.Established]
		add := func(flows, http *flows.Counts) {
			flows.Add(c)
			if l.Protocol.IsHTTP() {
				http.Add(c)
			}
		}
		add(&sd.Flows, &sd.HTTP)
		if w.r.isOf(l.Name) {
			add(&sd.Moved.Flows, &sd.Moved.HTTP)
		}
	}
	return counts, nil
}

// readOwn reads what a generation has queued and what it says itself.
func (w *watch) readOwn(g *generation, sd *judge.Side, counts map[string]flows.Counts) error {
	found, err := g.queues.Read()
	if err != nil {
		return err
	}
	if w.s.steering.Chooses() {
		sd.Queues = found
	}
	balances := map[string]judge.Balance{}
	for _, l := range g.recipe.config.Listeners {
		q := found[l.Name]
		sd.Queued.HalfOpen += q.HalfOpen
		sd.Queued.ToAccept += q.ToAccept
		balances[l.Name] = judge.Balance{Established: counts[l.Name][flows.Established], Queued: uint64(q.ToAccept)}
	}
	r, err := g.book.Reading()
	if err != nil {
		return nil // it keeps none
	}
	if sd.Damage = r.Damage; sd.Damage != "" {
		return nil
	}
	for _, l := range r.Listeners {
		if b, ok := balances[l.Name]; ok {
			b.Accepted = l.Flows.Accepted
			balances[l.Name] = b
			if w.r.isOf(l.Name) {
				sd.Moved.Failed += l.Flows.Failed
			}
		}
	}
	if w.s.kernel.Counts() {
		sd.Balances = balances
	}
	return nil
}

// readDatagrams reads what a generation says of QUIC and UDP.
func (w *watch) readDatagrams(g *generation, sd *judge.Side) {
	r, err := g.book.Reading()
	if err != nil || r.Damage != "" {
		return
	}
	sd.Strays = r.Strays
	for _, l := range g.recipe.config.Listeners {
		i := slices.IndexFunc(r.Listeners, func(of ledger.ListenerReading) bool { return of.Name == l.Name+contract.UDPSuffix })
		if i < 0 {
			continue
		}
		found := r.Listeners[i].Flows
		if l.Protocol == config.UDP {
			sd.UDP = sd.UDP.Plus(found)
		} else {
			sd.QUIC = sd.QUIC.Plus(found)
		}
		if w.r.isOf(l.Name) {
			sd.Moved.Datagrams = sd.Moved.Datagrams.Plus(found)
		}
	}
}

// readLife reads whether a generation lives, and of the candidate whether its sockets are
// where they were put.
func (w *watch) readLife(g *generation, sd *judge.Side) {
	sd.Dialed = g.dialed.each()
	if g == w.candidate {
		sd.InSlot, sd.Sockets, sd.SlotsErr = w.s.inSlot(g)
	}
	if sd.Alive = g.alive(); !sd.Alive {
		sd.Exit = w.s.exitOf(g)
	}
}

// balances reads what was counted of some listeners of the candidate.
func (w *watch) balances(listeners []string) (map[string]judge.Balance, error) {
	g := w.candidate
	all := make(map[string]judge.Balance, len(listeners))
	asked := make(steer.Sockets, len(listeners))
	for _, name := range listeners {
		counts, err := g.flows.On(name)
		if err != nil {
			return nil, err
		}
		all[name] = judge.Balance{Established: counts[flows.Established]}
		asked[name] = g.sockets[name]
	}
	queued, err := w.s.steering.Queued(asked)
	if err != nil {
		return nil, err
	}
	reading, err := g.book.Reading()
	if err != nil {
		return nil, err
	}
	for _, l := range reading.Listeners {
		b, ok := all[l.Name]
		if !ok {
			continue
		}
		for _, sock := range asked[l.Name] {
			b.Queued += uint64(queued[sock.Cookie].ToAccept)
		}
		b.Accepted = l.Flows.Accepted
		all[l.Name] = b
	}
	return all, nil
}
