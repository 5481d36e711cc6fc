package judge

import (
	"errors"
	"maps"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// ReadEvery is how often readings are taken while a candidate has flows. One takes some
// 10 µs a listener.
const ReadEvery = 200 * time.Millisecond

// keptReadings bounds those that are remembered: some minutes.
const keptReadings = 1024

// Party is one of the two generations that a release is about.
type Party struct {
	ID     uint64
	Config *config.Config
}

// Case is what is known of a candidate from the shift to the verdict. Its readings are
// of the two parties and of whoever else lives. It is for one goroutine.
type Case struct {
	candidate, previous Party
	counted             bool // the kernel counts flows
	begun               time.Time

	readings []Reading // oldest first; the first is the one before the shift
	peak     uint64    // the most open flows the candidate was seen with
	closed   map[uint64]*closed
	out      map[uint64]reuseport.Counts // runs of those that no shift names, when it had ceased to
	audits   map[string]*audit           // by listener, before the verdict

	refusal  []error // probes that failed, in a row
	identity error   // the candidate took itself for another
}

// closed is a generation at the listeners whose shift does not name it, when the
// last flow that was on its way by an earlier one had reached it.
type closed struct {
	runs      reuseport.Counts
	listeners map[string]Shut
}

// Shut is a listener of a generation that gets no new flows, at the moment when it ceased to.
type Shut struct {
	Established, Dialed uint64
	HalfOpen            int
}

// Open begins a case, before the first flow. Counted says that the kernel counts flows.
func Open(candidate, previous Party, counted bool) *Case {
	return &Case{candidate: candidate, previous: previous, counted: counted, begun: time.Now(), closed: map[uint64]*closed{}, out: map[uint64]reuseport.Counts{}}
}

// Add adds a reading.
func (c *Case) Add(r Reading) {
	c.peak = max(c.peak, r.Sides[c.candidate.ID].Flows.Open())
	if len(c.readings) == keptReadings {
		c.readings = append(c.readings[:1], c.readings[2:]...) // the first stays: it is what came before
	}
	c.readings = append(c.readings, r)
}

// first and now are the candidate's and everybody's beginning and latest moment.
func (c *Case) first() *Reading { return &c.readings[0] }
func (c *Case) now() *Reading   { return &c.readings[len(c.readings)-1] }

// own and before are the two parties in a reading.
func (c *Case) own(r *Reading) Side    { return r.Sides[c.candidate.ID] }
func (c *Case) before(r *Reading) Side { return r.Sides[c.previous.ID] }

// IsOut reports whether a generation is known to be in no shift.
func (c *Case) IsOut(generation uint64) bool { _, known := c.out[generation]; return known }

// Out notes a generation that no shift names, with the runs of its slot when it had
// ceased to.
func (c *Case) Out(generation uint64, runs reuseport.Counts) { c.out[generation] = runs }

// IsShut reports whether a listener of a generation is known to get no new flows.
func (c *Case) IsShut(generation uint64, listener string) bool {
	then := c.closed[generation]
	if then == nil {
		return false
	}
	_, known := then.listeners[listener]
	return known
}

// Shut notes at which listeners no new flow may reach a generation from now on. What is
// known already stays as it is.
func (c *Case) Shut(generation uint64, runs reuseport.Counts, at map[string]Shut) {
	then := c.closed[generation]
	if then == nil {
		then = &closed{runs: runs, listeners: map[string]Shut{}}
		c.closed[generation] = then
	}
	maps.Copy(then.listeners, at)
}

// Reopen forgets the listeners that have come to a generation meanwhile, since
// another that had them ended.
func (c *Case) Reopen(owns func(generation uint64) bool, serves func(generation uint64, listener string) bool) {
	maps.DeleteFunc(c.out, func(id uint64, _ reuseport.Counts) bool { return owns(id) })
	for id, then := range c.closed {
		maps.DeleteFunc(then.listeners, func(name string, _ Shut) bool { return serves(id, name) })
	}
}

// ErrIdentity says that a generation takes itself for another.
var ErrIdentity = errors.New("the candidate does not know who it is")

// Asked takes how a probe of the candidate ended.
func (c *Case) Asked(err error) {
	switch {
	case err == nil:
		c.refusal = nil
	case errors.Is(err, ErrIdentity):
		c.identity = err // it did answer
	default:
		c.refusal = append(c.refusal, err)
	}
}

// Hears reports whether another probe may tell what is not known yet: two that fail in a
// row are enough, since one may have met a moment in which the machine was busy.
func (c *Case) Hears() bool { return c.identity == nil && len(c.refusal) < 2 }

// silence is how long nobody need get an answer for a candidate to be in doubt.
const silence = 600 * time.Millisecond

// Doubtful reports that a probe has failed, or that for a while nobody got an answer
// although somebody is connected or waits to be accepted: a probe, the last of which
// began when asked says, tells a quiet moment from a generation that hangs.
func (c *Case) Doubtful(asked time.Time) bool {
	if len(c.refusal) > 0 {
		return true
	}
	if !c.counted || time.Since(asked) < time.Second {
		return false
	}
	now := c.own(c.now())
	if now.Queued.ToAccept == 0 && now.Flows.Open() == 0 {
		return false
	}
	for i := len(c.readings) - 1; i > 0; i-- {
		before := &c.readings[i]
		if c.own(before).Flows[flows.Answered] != now.Flows[flows.Answered] {
			return false
		}
		if c.now().At.Sub(before.At) >= silence {
			return true
		}
	}
	return false
}

// UnseenProbes are those that were answered and that the account does not have.
func (c *Case) UnseenProbes() uint64 {
	if !c.counted {
		return 0
	}
	own := c.own(c.now())
	return less(own.Probed, own.Flows[flows.Established])
}

// latest counts the flows of a generation, at the listeners that the release is of,
// that were answered or failed since the last reading that makes them enough; those
// that failed, and all.
func (c *Case) latest(generation, enough uint64) (failed, all uint64) {
	now := c.now().Sides[generation]
	for i := len(c.readings) - 2; i >= 0; i-- {
		then, ok := c.readings[i].Sides[generation]
		if !ok {
			break
		}
		failed = less(now.Moved.bad(), then.Moved.bad())
		all = less(now.Moved.decided(), then.Moved.decided())
		if all >= enough {
			break
		}
	}
	return failed, all
}
