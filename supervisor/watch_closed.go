package supervisor

import (
	"slices"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/judge"
)

// shut notes at which listeners no new flow may reach a generation from now on. It
// asks with Supervisor.mu held; what it knows already stays as it is.
func (w *watch) shut(out func(g *generation, listener string) bool) error {
	all := map[*generation][]string{}
	gone := map[*generation]bool{}
	w.s.mu.Lock()
	for _, g := range w.s.generations {
		if !w.IsOut(g.id) && g != w.candidate && !g.leftover() && !slices.ContainsFunc(g.recipe.config.Listeners, func(l config.Listener) bool { return !out(g, l.Name) }) {
			gone[g] = true
		}
		if !w.s.kernel.Counts() {
			continue
		}
		for _, name := range g.listenersOf() {
			if !w.IsShut(g.id, name) && out(g, name) {
				all[g] = append(all[g], name)
			}
		}
	}
	w.s.mu.Unlock()
	if len(all)+len(gone) == 0 {
		return nil
	}
	if err := w.s.steering.Fence(); err != nil {
		return err
	}
	for g := range gone {
		runs, err := w.s.steering.Counts(int(g.slot))
		if err != nil {
			return err
		}
		w.Out(g.id, runs)
	}
	for g, names := range all {
		// In this order: a handshake that finishes in between is in both.
		queued, err := w.s.steering.Queued(g.socketsOf(names))
		if err != nil {
			return err
		}
		runs, err := w.s.steering.Counts(int(g.slot))
		if err != nil {
			return err
		}
		counts, err := g.flows.Read()
		if err != nil {
			continue // it has none
		}
		at := map[string]judge.Shut{}
		for _, name := range names {
			of := judge.Shut{Established: counts[name][flows.Established], Dialed: g.dialed.on(name)}
			for _, sock := range g.sockets[name] {
				of.HalfOpen += queued[sock.Cookie].HalfOpen
			}
			at[name] = of
		}
		w.Shut(g.id, runs, at)
	}
	return nil
}

// reopen has the case forget what came to a generation meanwhile, since another that had
// it ended.
func (w *watch) reopen() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.Reopen(func(id uint64) bool {
		return slices.ContainsFunc(w.s.generations, func(g *generation) bool { return g.id == id && w.s.owns(g) })
	}, func(id uint64, listener string) bool {
		g := w.s.shiftOf(listener).current
		return g != nil && g.id == id
	})
}
