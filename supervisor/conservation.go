package supervisor

import (
	"fmt"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// balance is what the kernel and a generation have counted of one listener, from
// the generation's beginning. Read in the order of the fields: a flow passes from
// the first to the second to the third, so that one on its way may be in two and
// is never in none.
type balance struct {
	established uint64 // by the kernel
	queued      uint64 // for it to accept
	accepted    uint64 // by its ledger
}

// readOwn reads what a generation has queued and what it says itself.
func (w *watch) readOwn(g *generation, sd *side, counts map[string]flows.Counts) error {
	found, err := g.queues.Read()
	if err != nil {
		return err
	}
	if w.s.steering.Chooses() {
		sd.queues = found
	}
	balances := map[string]balance{}
	for _, l := range g.recipe.config.Listeners {
		b := balance{established: counts[l.Name][flows.Established]}
		q := found[l.Name]
		b.queued = uint64(q.ToAccept)
		sd.queued.HalfOpen += q.HalfOpen
		sd.queued.ToAccept += q.ToAccept
		balances[l.Name] = b
	}
	r, err := g.book.Reading()
	if err != nil {
		return nil // it keeps none
	}
	if sd.damage = r.Damage; sd.damage != "" {
		return nil
	}
	for _, l := range r.Listeners {
		if b, ok := balances[l.Name]; ok {
			b.accepted = l.Flows.Accepted
			balances[l.Name] = b
			if w.r.isOf(l.Name) {
				sd.moved.failed += l.Flows.Failed
			}
		}
	}
	if w.s.kernel.Counts() {
		sd.balances = balances
	}
	return nil
}

// audit is what was found of one listener at still moments: nothing had moved
// between two readings of its books.
type audit struct {
	moments int
	row     int           // the latest ones at which the books agreed, without a break
	off     map[int64]int // how often they were off by so many flows; missing ones count positive
	last    balance
}

const (
	// inARow is at how many still moments in a row the books must agree: at one
	// of them a flow in the hands of an accept loop could make up for one that was
	// counted twice.
	inARow = 5
	// enoughMoments is at how many moments they must not have agreed so to be wrong.
	enoughMoments = 50
)

func (a *audit) agreed() bool { return a.row >= inARow }

// wrong reports whether the books are off by the same number most of the time. A
// flow on its way is so for microseconds; one that is not counted is so for good.
func (a *audit) wrong() bool {
	if a.agreed() || a.moments < enoughMoments {
		return false
	}
	for off, n := range a.off {
		if off != 0 && n > a.moments/2 {
			return true
		}
	}
	return false
}

// auditAll looks once at every listener of the candidate of which it is not yet
// known whether its books agree, and reports whether it is known of all.
func (w *watch) auditAll() bool {
	g := w.candidate
	if w.now().sides[g].balances == nil {
		return true // it keeps no books
	}
	if w.audits == nil {
		w.audits = map[string]*audit{}
		for _, name := range g.listenersOf() {
			w.audits[name] = &audit{off: map[int64]int{}}
		}
	}
	var open []string
	for name, found := range w.audits {
		if !found.agreed() && !found.wrong() {
			open = append(open, name)
		}
	}
	first, err1 := w.books(open)
	second, err2 := w.books(open)
	if err1 != nil || err2 != nil {
		return false
	}
	for _, name := range open {
		found, one := w.audits[name], first[name]
		if one != second[name] {
			continue
		}
		off := int64(one.established) - int64(one.queued) - int64(one.accepted)
		if off < 0 {
			// A connection that was queued elsewhere and moved has its first mark.
			off = min(0, off+int64(w.moved(name)))
		}
		found.moments++
		found.off[off]++
		found.last = one
		found.row++
		if off != 0 {
			found.row = 0
		}
	}
	return len(open) == 0
}

// books reads what was counted of some listeners of the candidate.
func (w *watch) books(listeners []string) (map[string]balance, error) {
	g := w.candidate
	all := make(map[string]balance, len(listeners))
	asked := make(steer.Sockets, len(listeners))
	for _, name := range listeners {
		counts, err := g.flows.On(name)
		if err != nil {
			return nil, err
		}
		all[name] = balance{established: counts[flows.Established]}
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
			b.queued += uint64(queued[sock.Cookie].ToAccept)
		}
		b.accepted = l.Flows.Accepted
		all[l.Name] = b
	}
	return all, nil
}

// moved bounds the connections that the kernel moved into the candidate's accept
// queues, at one listener or, without a name, at all. What found no room in the
// tables may have been moved to any.
func (w *watch) moved(listener string) (bound uint64) {
	now, then := w.now().sides[w.candidate], w.first().sides[w.candidate]
	all := since(now.runs, then.runs, reuseport.Migrated)
	for name, q := range now.queues {
		to, halfOpen := less(q.Moved.ToAccept, then.queues[name].Moved.ToAccept), less(q.Moved.HalfOpen, then.queues[name].Moved.HalfOpen)
		all -= min(all, to+halfOpen)
		if listener == "" || listener == name {
			bound += to
		}
	}
	return bound + all
}

// conserved: what was established is accepted or queued, to the flow. An accept
// loop may have one in its hands that it has not written down; so while it is
// watched as many as there are loops may be missing. Before the verdict the books
// are audited: see auditAll.
func (w *watch) conserved() Finding {
	now := w.now().sides[w.candidate]
	switch {
	case !w.s.kernel.Counts():
		return unjudged("%v", account.ErrNoFlows)
	case now.damage != "":
		return unjudged("the candidate's ledger tells nothing")
	case now.balances == nil:
		return unjudged("%v: what it accepted, the kernel alone says", account.ErrNoLedger)
	}
	var all balance
	proven := 0
	for _, l := range w.candidate.recipe.config.Listeners {
		b := now.balances[l.Name]
		if missing := less(b.established, b.queued+b.accepted); missing > uint64(l.Workers) {
			return violated("listener %s: of %d flows that were established %d are queued and %d were accepted, as the candidate counts: %d are missing", l.Name, b.established, b.queued, b.accepted, missing)
		}
		switch found := w.audits[l.Name]; {
		case found == nil:
		case found.wrong():
			return violated("listener %s: of %d flows that were established %d are queued and %d were accepted, as the candidate counts, and so at most of %d still moments", l.Name, found.last.established, found.last.queued, found.last.accepted, found.moments)
		case found.agreed():
			proven++
		}
		all.established, all.queued, all.accepted = all.established+b.established, all.queued+b.queued, all.accepted+b.accepted
	}
	words := fmt.Sprintf("%d flows established, %d queued, %d accepted", all.established, all.queued, all.accepted)
	if w.audits != nil {
		words += fmt.Sprintf("; the books of %d of %d listeners agreed to the flow", proven, len(w.audits))
	}
	if moved := w.moved(""); moved > 0 {
		words += fmt.Sprintf("; at most %d were moved to it", moved)
	}
	if proven < len(w.audits) {
		return unjudged("%s; the others were not still for long enough to be audited", words)
	}
	return held("%s", words)
}
