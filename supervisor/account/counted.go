package account

import (
	"maps"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// RequestLabels tell requests apart over all generations.
type RequestLabels struct{ Listener, Route, Protocol, Class string }

// Counted is what generations have counted since the supervisor started, the
// living ones and those that have ended.
type Counted struct {
	Requests   map[RequestLabels]*ledger.Histogram
	Flows      map[string]ledger.Flows // by listener
	LostSpans  uint64                  // kept, and overwritten before they were read
	Damaged    uint64                  // ledgers; what they said before is among the rest
	Unfinished uint64                  // requests that ended with their generation
	Strays     uint64                  // packets of QUIC that named another slot than the one they reached
}

// NewCounted is nothing yet.
func NewCounted() Counted {
	return Counted{Requests: map[RequestLabels]*ledger.Histogram{}, Flows: map[string]ledger.Flows{}}
}

// Add adds a generation's account.
func (c *Counted) Add(r *ledger.Reading) {
	for i := range r.Series {
		s := &r.Series[i]
		labels := RequestLabels{r.ListenerName(s.Listener), r.RouteName(s.Route), s.Protocol.String(), s.Class.String()}
		sum := c.Requests[labels]
		if sum == nil {
			sum = new(ledger.Histogram)
			c.Requests[labels] = sum
		}
		sum.Add(&s.Histogram)
	}
	for _, l := range r.Listeners {
		c.Flows[l.Name] = c.Flows[l.Name].Plus(l.Flows)
	}
	c.LostSpans += r.LostKept
	for _, n := range r.Strays {
		c.Strays += n
	}
	if r.Damage != "" {
		c.Damaged++
	}
}

// Clone is a copy that may be added to.
func (c *Counted) Clone() Counted {
	own := *c
	own.Requests = make(map[RequestLabels]*ledger.Histogram, len(c.Requests))
	for labels, h := range c.Requests {
		sum := *h
		own.Requests[labels] = &sum
	}
	own.Flows = maps.Clone(c.Flows)
	return own
}
