package supervisor

import (
	"slices"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// closedAt is a generation at the listeners whose shift does not name it, when the
// last flow that was on its way by an earlier one had reached it.
type closedAt struct {
	runs      reuseport.Counts
	listeners map[string]closedListener
}

type closedListener struct {
	established, dialed uint64
	halfOpen            int
}

// shut notes at which listeners no new flow may reach a generation from now on. It
// asks with Supervisor.mu held; what it knows already stays as it is.
func (w *watch) shut(out func(g *generation, listener string) bool) error {
	all := map[*generation][]string{}
	gone := map[*generation]bool{}
	w.s.mu.Lock()
	for _, g := range w.s.generations {
		if _, known := w.out[g]; !known && g != w.candidate && !g.leftover() && !slices.ContainsFunc(g.recipe.config.Listeners, func(l config.Listener) bool { return !out(g, l.Name) }) {
			gone[g] = true
		}
		if !w.s.kernel.Counts() {
			continue
		}
		for _, name := range g.listenersOf() {
			if _, known := w.closedAt(g, name); !known && out(g, name) {
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
		w.out[g] = runs
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
		then := w.closed[g]
		if then == nil {
			then = &closedAt{runs: runs, listeners: map[string]closedListener{}}
			w.closed[g] = then
		}
		for _, name := range names {
			at := closedListener{established: counts[name][flows.Established], dialed: g.dialed.on(name)}
			for _, sock := range g.sockets[name] {
				at.halfOpen += queued[sock.Cookie].HalfOpen
			}
			then.listeners[name] = at
		}
	}
	return nil
}

func (w *watch) closedAt(g *generation, listener string) (at closedListener, ok bool) {
	if then := w.closed[g]; then != nil {
		at, ok = then.listeners[listener]
	}
	return at, ok
}
