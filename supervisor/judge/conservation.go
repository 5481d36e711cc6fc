package judge

import (
	"fmt"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/account"
)

// Balance is what the kernel and a generation have counted of one listener, from
// the generation's beginning. Read in the order of the fields: a flow passes from
// the first to the second to the third, so that one on its way may be in two and
// is never in none.
type Balance struct {
	Established uint64 // by the kernel
	Queued      uint64 // for it to accept
	Accepted    uint64 // by its ledger
}

// audit is what was found of one listener at still moments: nothing had moved
// between two readings of its books.
type audit struct {
	moments int
	row     int           // the latest ones at which the books agreed, without a break
	off     map[int64]int // how often they were off by so many flows; missing ones count positive
	last    Balance
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

// Audit looks once at every listener of the candidate of which it is not yet known
// whether its books agree, and reports whether it is known of all. It reads them twice,
// by what it is given.
func (c *Case) Audit(listeners []string, read func(listeners []string) (map[string]Balance, error)) bool {
	if c.own(c.now()).Balances == nil {
		return true // it keeps no books
	}
	if c.audits == nil {
		c.audits = map[string]*audit{}
		for _, name := range listeners {
			c.audits[name] = &audit{off: map[int64]int{}}
		}
	}
	var open []string
	for name, found := range c.audits {
		if !found.agreed() && !found.wrong() {
			open = append(open, name)
		}
	}
	first, err1 := read(open)
	second, err2 := read(open)
	if err1 != nil || err2 != nil {
		return false
	}
	for _, name := range open {
		found, one := c.audits[name], first[name]
		if one != second[name] {
			continue
		}
		off := int64(one.Established) - int64(one.Queued) - int64(one.Accepted)
		if off < 0 {
			// A connection that was queued elsewhere and moved has its first mark.
			off = min(0, off+int64(c.moved(name)))
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

// moved bounds the connections that the kernel moved into the candidate's accept
// queues, at one listener or, without a name, at all. What found no room in the
// tables may have been moved to any.
func (c *Case) moved(listener string) (bound uint64) {
	now, then := c.own(c.now()), c.own(c.first())
	all := since(now.Runs, then.Runs, reuseport.Migrated)
	for name, q := range now.Queues {
		to, halfOpen := less(q.Moved.ToAccept, then.Queues[name].Moved.ToAccept), less(q.Moved.HalfOpen, then.Queues[name].Moved.HalfOpen)
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
// are audited: see Audit.
func (c *Case) conserved() Finding {
	now := c.own(c.now())
	switch {
	case !c.counted:
		return unjudged("%v", account.ErrNoFlows)
	case now.Damage != "":
		return unjudged("the candidate's ledger tells nothing")
	case now.Balances == nil:
		return unjudged("%v: what it accepted, the kernel alone says", account.ErrNoLedger)
	}
	var all Balance
	proven := 0
	for _, l := range c.candidate.Config.Listeners {
		b := now.Balances[l.Name]
		if missing := less(b.Established, b.Queued+b.Accepted); missing > uint64(l.Workers) {
			return violated("listener %s: of %d flows that were established %d are queued and %d were accepted, as the candidate counts: %d are missing", l.Name, b.Established, b.Queued, b.Accepted, missing)
		}
		switch found := c.audits[l.Name]; {
		case found == nil:
		case found.wrong():
			return violated("listener %s: of %d flows that were established %d are queued and %d were accepted, as the candidate counts, and so at most of %d still moments", l.Name, found.last.Established, found.last.Queued, found.last.Accepted, found.moments)
		case found.agreed():
			proven++
		}
		all.Established, all.Queued, all.Accepted = all.Established+b.Established, all.Queued+b.Queued, all.Accepted+b.Accepted
	}
	words := fmt.Sprintf("%d flows established, %d queued, %d accepted", all.Established, all.Queued, all.Accepted)
	if c.audits != nil {
		words += fmt.Sprintf("; the books of %d of %d listeners agreed to the flow", proven, len(c.audits))
	}
	if moved := c.moved(""); moved > 0 {
		words += fmt.Sprintf("; at most %d were moved to it", moved)
	}
	if proven < len(c.audits) {
		return unjudged("%s; the others were not still for long enough to be audited", words)
	}
	return held("%s", words)
}
