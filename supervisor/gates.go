package supervisor

import (
	"fmt"
	"maps"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/account"
)

// A gate is one fact that must be as it has to be while a candidate is watched.
// None of them weighs or estimates: what they say is so or is not. What would
// need a comparison of rates has no place here.
type gate struct {
	name string
	ask  func(*watch) Finding
}

// gates are asked at each reading, in this order, and each finds something.
var gates = []gate{
	{"alive", (*watch).alive},
	{"sockets", (*watch).sockets},
	{"steered", (*watch).steered},
	{"queues", (*watch).queuesHeld},
	{"misrouted", (*watch).misrouted},
	{"strays", (*watch).strayed},
	{"resets", (*watch).resets},
	{"answers", (*watch).answers},
	{"errors", (*watch).errors},
	{"identity", (*watch).identified},
	{"conservation", (*watch).conserved},
	{"resources", (*watch).hoards},
	{"observation", (*watch).observed},
}

func (w *watch) alive() Finding {
	if !w.candidate.alive() {
		return violated("generation %d ended: %s", w.candidate.id, w.s.exitOf(w.candidate))
	}
	return held("the candidate runs")
}

// sockets: a socket that its generation has shut down or closed leaves its slot.
func (w *watch) sockets() Finding {
	g := w.candidate
	if !g.alive() {
		return unjudged("the candidate has ended")
	}
	in, all, err := w.s.inSlot(g)
	switch {
	case err != nil:
		return unclear("the slots cannot be read: %v", err)
	case in < all:
		return violated("generation %d has given up %d of its %d listening sockets", g.id, all-in, all)
	}
	return held("%d of %d listening sockets are in their slots", in, all)
}

// steered: while somebody serves nobody waits, and nobody is sent away.
func (w *watch) steered() Finding {
	sunk := since(w.now().none, w.first().none, reuseport.Sink)
	lost := since(w.now().none, w.first().none, reuseport.Lost)
	switch {
	case lost > 0:
		return violated("%d connections found nobody to take them over", lost)
	case sunk > 0 && w.previous.alive():
		return violated("%d flows found no generation and went to the sink", sunk)
	}
	runs, before := w.now().sides[w.candidate].runs, w.first().sides[w.candidate].runs
	given := since(runs, before, reuseport.Current) + since(runs, before, reuseport.Ramped)
	return held("the candidate was chosen %d times, the sink %d times", given, sunk)
}

// misrouted: what was established at a generation that no shift named. It may
// finish the handshakes that it had answered before, and take over those of a
// listener that closed; nothing else.
func (w *watch) misrouted() Finding {
	if !w.s.kernel.Counts() {
		return unjudged("%v", account.ErrNoFlows)
	}
	w.reopen()
	asked := 0
	for g, then := range w.closed {
		now, ok := w.now().sides[g]
		if !ok || !g.alive() {
			continue
		}
		// Runs are counted by slot, so what one listener's may explain is a bound.
		moved := since(now.runs, then.runs, reuseport.Migrated) + since(now.runs, then.runs, reuseport.Fallback)
		var came, may uint64
		for name, at := range then.listeners {
			asked++
			cameHere, mayHere := less(now.established[name], at.established), uint64(at.halfOpen)+less(g.dialed.on(name), at.dialed)
			if cameHere > mayHere+moved {
				return violated("%d flows of listener %s reached generation %d, which its shift did not name", cameHere-mayHere-moved, name, g.id)
			}
			came, may = came+cameHere, may+min(cameHere, mayHere)
		}
		if came > may+moved {
			return violated("%d flows reached generation %d, which no shift named", came-may-moved, g.id)
		}
	}
	for name, early := range w.first().sides[w.candidate].established {
		asked++
		if probes := w.candidate.dialed.on(name); early > probes {
			return violated("%d flows of listener %s reached the candidate before the shift, beside %d probes", early-probes, name, probes)
		}
	}
	return held("no flow reached a generation that its listener's shift did not name; %d times a listener of a generation was asked", asked)
}

// reopen forgets the listeners that have come to a generation meanwhile, since
// another that had them ended.
func (w *watch) reopen() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	maps.DeleteFunc(w.out, func(g *generation, _ reuseport.Counts) bool { return w.s.owns(g) })
	for g, then := range w.closed {
		maps.DeleteFunc(then.listeners, func(name string, _ closedListener) bool { return w.s.shiftOf(name).current == g })
	}
}

func since(now, then reuseport.Counts, r reuseport.Reason) uint64 { return less(now[r], then[r]) }

// less is a - b, and 0 where an account is gone or was begun anew.
func less(a, b uint64) uint64 { return a - min(a, b) }

// resets: of flows that nobody had accepted, at the candidate and at the one
// before; and of flows that the candidate accepted and reset before it had
// answered anything. A server whose nature that is shows it in the generation
// before, too.
func (w *watch) resets() Finding {
	if !w.s.kernel.Counts() {
		return unjudged("%v", account.ErrNoFlows)
	}
	for _, g := range []*generation{w.candidate, w.previous} {
		now, then := w.now().sides[g], w.first().sides[g]
		if n := less(now.flows[flows.ResetQueued], then.flows[flows.ResetQueued]); n > 0 {
			return violated("%d flows were reset in the queue of generation %d, accepted by nobody", n, g.id)
		}
	}
	now, then := w.now().sides[w.candidate], w.first().sides[w.candidate]
	n := less(now.moved.http[flows.ResetUnanswered], then.moved.http[flows.ResetUnanswered])
	before := w.now().sides[w.previous].moved.http[flows.ResetUnanswered]
	switch {
	case n > 0 && before == 0:
		return violated("the candidate accepted %d flows and reset them without an answer; generation %d never did in %d flows", n, w.previous.id, w.now().sides[w.previous].moved.http[flows.Established])
	case n > 0:
		return held("%d flows were reset without an answer, and %d of the generation before", n, before)
	}
	return held("0 flows were reset in a queue or without an answer; %d others were reset", less(now.flows[flows.ResetSent], then.flows[flows.ResetSent]))
}

// answers: two probes in a row that fail are a generation that hangs.
func (w *watch) answers() Finding {
	if n := len(w.refusal); n >= 2 {
		return violated("%d probes in a row had no answer: %v", n, w.refusal[n-1])
	}
	now, then := w.now().sides[w.candidate].flows, w.first().sides[w.candidate].flows
	return held("%d flows were answered, %d are open", less(now[flows.Answered], then[flows.Answered]), now.Open())
}

// errors is the budget: of the candidate's latest flows no larger share may have
// failed. Where as many fail at the generation before, it is not the candidate.
func (w *watch) errors() Finding {
	if !w.s.kernel.Counts() {
		return unjudged("%v", account.ErrNoFlows)
	}
	v := w.r.recipe.config.Release.Verify
	failed, ended := w.latest(w.candidate, uint64(v.MinFlows))
	if ended < uint64(v.MinFlows) {
		return unjudged("%d of %d flows failed; the budget of %v is asked from %d flows on", failed, ended, v.MaxErrorRate, v.MinFlows)
	}
	if float64(failed) <= float64(v.MaxErrorRate)*float64(ended) {
		return held("%d of the latest %d flows failed; the budget is %v", failed, ended, v.MaxErrorRate)
	}
	failedBefore, endedBefore := w.latest(w.previous, uint64(v.MinFlows))
	if endedBefore >= uint64(v.MinFlows) && float64(failedBefore) > float64(v.MaxErrorRate)*float64(endedBefore) {
		return unjudged("%d of the latest %d flows failed, and %d of %d of the generation before: the budget of %v tells nothing", failed, ended, failedBefore, endedBefore, v.MaxErrorRate)
	}
	return violated("%d of the latest %d flows failed; the budget is %v", failed, ended, v.MaxErrorRate)
}

// latest counts the flows of a generation, at the listeners that the release is of,
// that were answered or failed since the last reading that makes them enough; those
// that failed, and all.
func (w *watch) latest(g *generation, enough uint64) (failed, all uint64) {
	now := w.now().sides[g]
	for i := len(w.readings) - 2; i >= 0; i-- {
		then, ok := w.readings[i].sides[g]
		if !ok {
			break
		}
		failed = less(now.moved.bad(), then.moved.bad())
		all = less(now.moved.decided(), then.moved.decided())
		if all >= enough {
			break
		}
	}
	return failed, all
}

// identified: it is who it says.
func (w *watch) identified() Finding {
	if w.identity != nil {
		return violated("%v", w.identity)
	}
	if !w.candidate.recipe.config.Proxy.Baton {
		return unjudged("the candidate says nothing of itself")
	}
	return held("generation %d, server_id %d", w.candidate.id, w.candidate.recipe.config.Node.ServerID)
}

// bad are flows whose client got no answer, or a reset. A stream that gets no
// answer need not have failed.
// What the generation itself counts as an error is more than the kernel sees; both
// may know of the same flow. Of QUIC and UDP the generation alone knows.
func (s moved) bad() uint64 {
	return max(s.failed, s.http[flows.Failed]+less(s.flows[flows.ResetSent], s.http[flows.ResetSent])) + s.datagrams.Failed
}

// decided are flows of which it is known whether they failed.
func (s moved) decided() uint64 {
	return s.http[flows.Answered] + s.http[flows.Unanswered] + less(s.flows[flows.Closed], s.http[flows.Closed]) + s.datagrams.Accepted
}

// hoards asks for descriptors, threads and memory of the candidate's main process.
func (w *watch) hoards() Finding {
	var seen []resources
	var last time.Time
	for i := range w.readings {
		// Those that a busy machine has taken one right after the other tell nothing of a trend.
		if r := &w.readings[i]; r.at.Sub(last) >= readEvery/2 {
			seen, last = append(seen, r.resources), r.at
		}
	}
	if !w.candidate.alive() && len(seen) > 0 {
		seen = seen[:len(seen)-1]
	}
	if words := leaking(seen, w.peak); words != "" {
		return violated("%s", words)
	}
	if len(seen) == 0 {
		return unjudged("it was never seen alive")
	}
	r := seen[len(seen)-1]
	return held("%d descriptors, %d threads, %d MiB", r.descriptors, r.threads, r.resident>>20)
}

// observed: what the others rest on was seen. An account that has a hole is no
// proof of anything.
func (w *watch) observed() Finding {
	if !w.s.kernel.Counts() {
		return unjudged("%v", account.ErrNoFlows)
	}
	if err := w.now().err; err != nil {
		return unclear("%v", err)
	}
	for _, g := range []*generation{w.candidate, w.previous} {
		if !g.flows.Whole() {
			return unclear("the account of generation %d does not begin with it", g.id)
		}
		now := w.now().sides[g]
		if g == w.candidate && now.damage != "" {
			return unclear("the candidate's ledger is damaged: %s", now.damage)
		}
		for f, n := range w.first().sides[g].flows {
			if now.flows[f] < n {
				return unclear("generation %d had %d flows %s and has %d", g.id, n, flows.Fact(f), now.flows[f])
			}
		}
	}
	if n := w.unseenProbes(); n > 0 {
		return unclear("%d probes of %d were not counted", n, w.candidate.probed.Load())
	}
	return held("%d probes were counted among %s", w.candidate.probed.Load(), plural(w.now().sides[w.candidate].flows[flows.Established]))
}

func plural(flows uint64) string {
	if flows == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", flows)
}
