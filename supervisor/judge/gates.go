package judge

import (
	"fmt"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/account"
)

// A gate is one fact that must be as it has to be while a candidate is watched.
type gate struct {
	name string
	ask  func(*Case) Finding
}

// gates are asked at each reading, in this order, and each finds something.
var gates = []gate{
	{"alive", (*Case).alive},
	{"sockets", (*Case).sockets},
	{"steered", (*Case).steered},
	{"queues", (*Case).queuesHeld},
	{"misrouted", (*Case).misrouted},
	{"strays", (*Case).strayed},
	{"resets", (*Case).resets},
	{"answers", (*Case).answers},
	{"errors", (*Case).errors},
	{"identity", (*Case).identified},
	{"conservation", (*Case).conserved},
	{"resources", (*Case).hoards},
	{"observation", (*Case).observed},
}

func (c *Case) alive() Finding {
	if own := c.own(c.now()); !own.Alive {
		return violated("generation %d ended: %s", c.candidate.ID, own.Exit)
	}
	return held("the candidate runs")
}

// sockets: a socket that its generation has shut down or closed leaves its slot.
func (c *Case) sockets() Finding {
	own := c.own(c.now())
	in, all := own.InSlot, own.Sockets
	switch {
	case !own.Alive:
		return unjudged("the candidate has ended")
	case own.SlotsErr != nil:
		return unclear("the slots cannot be read: %v", own.SlotsErr)
	case in < all:
		return violated("generation %d has given up %d of its %d listening sockets", c.candidate.ID, all-in, all)
	}
	return held("%d of %d listening sockets are in their slots", in, all)
}

// steered: while somebody serves nobody waits, and nobody is sent away.
func (c *Case) steered() Finding {
	sunk := since(c.now().NoSlot, c.first().NoSlot, reuseport.Sink)
	lost := since(c.now().NoSlot, c.first().NoSlot, reuseport.Lost)
	switch {
	case lost > 0:
		return violated("%d connections found nobody to take them over", lost)
	case sunk > 0 && c.before(c.now()).Alive:
		return violated("%d flows found no generation and went to the sink", sunk)
	}
	runs, before := c.own(c.now()).Runs, c.own(c.first()).Runs
	given := since(runs, before, reuseport.Current) + since(runs, before, reuseport.Ramped)
	return held("the candidate was chosen %d times, the sink %d times", given, sunk)
}

// misrouted: what was established at a generation that no shift named. It may
// finish the handshakes that it had answered before, and take over those of a
// listener that closed; nothing else.
func (c *Case) misrouted() Finding {
	if !c.counted {
		return unjudged("%v", account.ErrNoFlows)
	}
	asked := 0
	for g, then := range c.closed {
		now, ok := c.now().Sides[g]
		if !ok || !now.Alive {
			continue
		}
		// Runs are counted by slot, so what one listener's may explain is a bound.
		moved := since(now.Runs, then.runs, reuseport.Migrated) + since(now.Runs, then.runs, reuseport.Fallback)
		var came, may uint64
		for name, at := range then.listeners {
			asked++
			cameHere, mayHere := less(now.Established[name], at.Established), uint64(at.HalfOpen)+less(now.Dialed[name], at.Dialed)
			if cameHere > mayHere+moved {
				return violated("%d flows of listener %s reached generation %d, which its shift did not name", cameHere-mayHere-moved, name, g)
			}
			came, may = came+cameHere, may+min(cameHere, mayHere)
		}
		if came > may+moved {
			return violated("%d flows reached generation %d, which no shift named", came-may-moved, g)
		}
	}
	for name, early := range c.own(c.first()).Established {
		asked++
		if probes := c.own(c.now()).Dialed[name]; early > probes {
			return violated("%d flows of listener %s reached the candidate before the shift, beside %d probes", early-probes, name, probes)
		}
	}
	return held("no flow reached a generation that its listener's shift did not name; %d times a listener of a generation was asked", asked)
}

// resets: of flows that nobody had accepted, at the candidate and at the one
// before; and of flows that the candidate accepted and reset before it had
// answered anything. A server whose nature that is shows it in the generation
// before, too.
func (c *Case) resets() Finding {
	if !c.counted {
		return unjudged("%v", account.ErrNoFlows)
	}
	for _, g := range []uint64{c.candidate.ID, c.previous.ID} {
		now, then := c.now().Sides[g], c.first().Sides[g]
		if n := less(now.Flows[flows.ResetQueued], then.Flows[flows.ResetQueued]); n > 0 {
			return violated("%d flows were reset in the queue of generation %d, accepted by nobody", n, g)
		}
	}
	now, then := c.own(c.now()), c.own(c.first())
	n := less(now.Moved.HTTP[flows.ResetUnanswered], then.Moved.HTTP[flows.ResetUnanswered])
	before := c.before(c.now()).Moved.HTTP[flows.ResetUnanswered]
	switch {
	case n > 0 && before == 0:
		return violated("the candidate accepted %d flows and reset them without an answer; generation %d never did in %d flows", n, c.previous.ID, c.before(c.now()).Moved.HTTP[flows.Established])
	case n > 0:
		return held("%d flows were reset without an answer, and %d of the generation before", n, before)
	}
	return held("0 flows were reset in a queue or without an answer; %d others were reset", less(now.Flows[flows.ResetSent], then.Flows[flows.ResetSent]))
}

// answers: two probes in a row that fail are a generation that hangs.
func (c *Case) answers() Finding {
	if n := len(c.refusal); n >= 2 {
		return violated("%d probes in a row had no answer: %v", n, c.refusal[n-1])
	}
	now, then := c.own(c.now()).Flows, c.own(c.first()).Flows
	return held("%d flows were answered, %d are open", less(now[flows.Answered], then[flows.Answered]), now.Open())
}

// errors is the budget: of the candidate's latest flows no larger share may have
// failed. Where as many fail at the generation before, it is not the candidate.
func (c *Case) errors() Finding {
	if !c.counted {
		return unjudged("%v", account.ErrNoFlows)
	}
	v := c.candidate.Config.Release.Verify
	failed, ended := c.latest(c.candidate.ID, uint64(v.MinFlows))
	blind := ""
	if !c.candidate.Config.Proxy.Baton {
		blind = "; with which status it answers nobody sees, for it keeps no ledger"
	}
	if ended < uint64(v.MinFlows) {
		return unjudged("%d of %d flows failed; the budget of %v is asked from %d flows on%s", failed, ended, v.MaxErrorRate, v.MinFlows, blind)
	}
	if float64(failed) <= float64(v.MaxErrorRate)*float64(ended) {
		return held("%d of the latest %d flows failed; the budget is %v%s", failed, ended, v.MaxErrorRate, blind)
	}
	failedBefore, endedBefore := c.latest(c.previous.ID, uint64(v.MinFlows))
	if endedBefore >= uint64(v.MinFlows) && float64(failedBefore) > float64(v.MaxErrorRate)*float64(endedBefore) {
		return unjudged("%d of the latest %d flows failed, and %d of %d of the generation before: the budget of %v tells nothing", failed, ended, failedBefore, endedBefore, v.MaxErrorRate)
	}
	return violated("%d of the latest %d flows failed; the budget is %v", failed, ended, v.MaxErrorRate)
}

// identified: it is who it says.
func (c *Case) identified() Finding {
	if c.identity != nil {
		return violated("%v", c.identity)
	}
	if !c.candidate.Config.Proxy.Baton {
		return unjudged("the candidate says nothing of itself")
	}
	return held("generation %d, server_id %d", c.candidate.ID, c.candidate.Config.Node.ServerID)
}

// hoards asks for descriptors, threads and memory of the candidate's main process.
func (c *Case) hoards() Finding {
	var seen []Resources
	var last time.Time
	for i := range c.readings {
		// Those that a busy machine has taken one right after the other tell nothing of a trend.
		if r := &c.readings[i]; r.At.Sub(last) >= ReadEvery/2 {
			seen, last = append(seen, r.Resources), r.At
		}
	}
	if !c.own(c.now()).Alive {
		seen = seen[:len(seen)-1]
	}
	if words := leaking(seen, c.peak); words != "" {
		return violated("%s", words)
	}
	if len(seen) == 0 {
		return unjudged("it was never seen alive")
	}
	r := seen[len(seen)-1]
	return held("%d descriptors, %d threads, %d MiB", r.Descriptors, r.Threads, r.Resident>>20)
}

// observed: what the others rest on was seen. An account that has a hole is no
// proof of anything.
func (c *Case) observed() Finding {
	if !c.counted {
		return unjudged("%v", account.ErrNoFlows)
	}
	if err := c.now().Err; err != nil {
		return unclear("%v", err)
	}
	for _, g := range []uint64{c.candidate.ID, c.previous.ID} {
		now := c.now().Sides[g]
		if !now.Whole {
			return unclear("the account of generation %d does not begin with it", g)
		}
		if g == c.candidate.ID && now.Damage != "" {
			return unclear("the candidate's ledger is damaged: %s", now.Damage)
		}
		for f, n := range c.first().Sides[g].Flows {
			if now.Flows[f] < n {
				return unclear("generation %d had %d flows %s and has %d", g, n, flows.Fact(f), now.Flows[f])
			}
		}
	}
	if n := c.UnseenProbes(); n > 0 {
		return unclear("%d probes of %d were not counted", n, c.own(c.now()).Probed)
	}
	return held("%d probes were counted among %s", c.own(c.now()).Probed, plural(c.own(c.now()).Flows[flows.Established]))
}

// Findings asks every gate.
func (c *Case) Findings() []Finding {
	all := make([]Finding, 0, len(gates))
	for _, g := range gates {
		f := g.ask(c)
		f.Gate = g.name
		all = append(all, f)
	}
	return all
}

func plural(flows uint64) string {
	if flows == 1 {
		return "1 flow"
	}
	return fmt.Sprintf("%d flows", flows)
}
