package supervisor

import (
	"errors"
	"hash/fnv"
	"slices"
	"sync"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/state"
)

// accounts is what the kernel counts of the flows of every generation. Its zero
// value counts nothing: this machine has none to give.
type accounts struct {
	flows *flows.Flows

	mu      sync.Mutex
	gone    map[string]flows.Counts // by listener, of generations that have been forgotten
	dropped map[string]uint64       // by listener, by sockets of such generations
	lost    map[uint64]bool         // generations whose account does not begin with them
}

// openAccount begins to count. Without it a release is judged by what else is known, and that is said.
func (s *Supervisor) openAccount(pins string) {
	s.accounts.gone, s.accounts.lost = map[string]flows.Counts{}, map[uint64]bool{}
	if !s.steering.Chooses() || s.opts.Unsteered {
		return // generations share their sockets: a flow's socket does not tell whose it is
	}
	own, err := cgroup.Find()
	if err == nil {
		s.accounts.flows, err = flows.Open(own, pins)
	}
	if err != nil {
		s.log.Warn("no account of flows: releases are judged without it", "reason", err)
		return
	}
	// What the state file does not know of has ended.
	err = s.accounts.flows.Prune(func(id uint64) bool {
		return slices.ContainsFunc(s.state.Generations, func(g state.Generation) bool { return g.ID == id })
	})
	if err != nil {
		s.log.Error("accounts of an earlier supervisor stay", "error", err)
	}
}

func (s *Supervisor) closeAccount() {
	if f := s.accounts.flows; f != nil {
		f.Unpin()
		f.Close()
	}
}

// accountNumber names a listener in the kernel's account. A supervisor that
// adopts finds the same number without having been told.
func accountNumber(listener string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(listener))
	return h.Sum32()
}

// count opens the accounts of a generation before its first flow. For one that
// is adopted they are open; those that are not have lost what went before.
func (s *Supervisor) count(g *generation, adopted bool) {
	a := &s.accounts
	g.closing = func() { s.queuesOf(g) } // their last word
	if a.flows == nil {
		return
	}
	for name, workers := range g.sockets {
		number := accountNumber(name)
		if adopted {
			if _, err := a.flows.Counts(g.id, number); err == nil {
				continue // its sockets have their marks too: both are pinned, or neither is
			}
			a.mu.Lock()
			a.lost[g.id] = true
			a.mu.Unlock()
			s.log.Warn("the account of a generation begins in its middle", "generation", g.id, "listener", name)
		}
		err := a.flows.Account(g.id, number)
		for _, sock := range workers {
			if err == nil {
				err = a.flows.Mark(sock.FD, g.id, number)
			}
		}
		if err != nil {
			a.mu.Lock()
			a.lost[g.id] = true
			a.mu.Unlock()
			s.log.Error("a generation's flows are not counted", "generation", g.id, "listener", name, "error", err)
		}
	}
}

// listenersOf are the names of the listeners to which clients of a generation connect.
func (g *generation) listenersOf() []string {
	var names []string
	if !g.leftover() {
		for _, l := range g.recipe.config.Listeners {
			if l.Protocol.HasStreams() {
				names = append(names, l.Name)
			}
		}
	}
	return names
}

// errNoAccount says that nothing is counted for a generation.
var errNoAccount = errors.New("this machine counts no flows")

// of reads the accounts of a generation, by listener.
func (a *accounts) of(g *generation) (map[string]flows.Counts, error) {
	if a.flows == nil {
		return nil, errNoAccount
	}
	if last := g.lastAccount.Load(); last != nil {
		return *last, nil
	}
	all := map[string]flows.Counts{}
	for _, name := range g.listenersOf() {
		c, err := a.flows.Counts(g.id, accountNumber(name))
		if err != nil {
			return nil, err
		}
		all[name] = c
	}
	return all, nil
}

// on reads the account of a generation on one listener.
func (a *accounts) on(g *generation, listener string) (flows.Counts, error) {
	if a.flows == nil {
		return flows.Counts{}, errNoAccount
	}
	if last := g.lastAccount.Load(); last != nil {
		return (*last)[listener], nil
	}
	return a.flows.Counts(g.id, accountNumber(listener))
}

// sum is an account over all listeners.
func sum(byListener map[string]flows.Counts) (all flows.Counts) {
	for _, c := range byListener {
		all.Add(c)
	}
	return all
}

// whole reports whether an account has counted every flow of the generation.
func (a *accounts) whole(g *generation) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.lost[g.id]
}

// forget closes the accounts of a generation that has gone and returns what was
// last in them. Connections that linger in FIN_WAIT go on uncounted.
func (a *accounts) forget(g *generation) flows.Counts {
	byListener, err := a.of(g)
	if err != nil {
		return flows.Counts{}
	}
	g.lastAccount.Store(&byListener)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.lost, g.id)
	for name, c := range byListener {
		before := a.gone[name]
		before.Add(c)
		a.gone[name] = before
		a.flows.Forget(g.id, accountNumber(name))
	}
	return sum(byListener)
}

// facts is an account as the status and the metrics show it; what is zero is left out.
func facts(c flows.Counts) map[string]uint64 {
	all := map[string]uint64{}
	for f, n := range c {
		if n > 0 {
			all[flows.Fact(f).String()] = n
		}
	}
	return all
}

// describeFlows fills in what the status says of flows. s.mu is held.
func (s *Supervisor) describeFlows(st *Status) {
	a := &s.accounts
	if a.flows == nil {
		return
	}
	byListener := map[string]flows.Counts{}
	a.mu.Lock()
	for name, c := range a.gone {
		byListener[name] = c
	}
	a.mu.Unlock()
	for i, g := range s.generations {
		counts, err := a.of(g)
		if err != nil || len(counts) == 0 {
			continue
		}
		for name, c := range counts {
			before := byListener[name]
			before.Add(c)
			byListener[name] = before
		}
		all := sum(counts)
		st.Generations[i].Flows, st.Generations[i].OpenFlows = facts(all), all.Open()
	}
	for i := range st.Listeners {
		st.Listeners[i].Flows = facts(byListener[st.Listeners[i].Name])
	}
}
