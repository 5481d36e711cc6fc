package supervisor

import (
	"maps"
	"sync"
	"time"

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

func newCounted() Counted {
	return Counted{Requests: map[RequestLabels]*ledger.Histogram{}, Flows: map[string]ledger.Flows{}}
}

// add adds a generation's account.
func (c *Counted) add(r *ledger.Reading) {
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

// endAccount adds the last account of a generation. s.mu is held.
func (s *Supervisor) endAccount(g *generation) {
	if g.book == nil {
		return
	}
	last := g.book.read()
	total := last.Total()
	s.counted.add(&last)
	s.counted.Unfinished += total.InFlight
}

// Counted sums up all accounts as they are now.
func (s *Supervisor) Counted() Counted {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counted
	c.Requests = make(map[RequestLabels]*ledger.Histogram, len(s.counted.Requests))
	for labels, h := range s.counted.Requests {
		sum := *h
		c.Requests[labels] = &sum
	}
	c.Flows = maps.Clone(s.counted.Flows)
	for _, g := range s.generations {
		if g.book != nil {
			now := g.book.read()
			c.add(&now)
		}
	}
	return c
}

// Exemplar is a request that stands for others of its kind: its span was kept.
type Exemplar struct {
	TraceID  [16]byte
	Duration time.Duration
	Began    time.Time
}

// exemplars has the latest for each kind of request, and power of two of its
// duration.
type exemplars struct {
	mu  sync.Mutex
	all map[exemplarKey]Exemplar
}

type exemplarKey struct {
	labels RequestLabels
	power  int
}

// mostExemplars bounds what labels that come and go with configurations can take.
const mostExemplars = 4096

// keepSpans takes what a generation has kept.
func (s *Supervisor) keepSpans(spans []RequestSpan) {
	s.exemplars.mu.Lock()
	if s.exemplars.all == nil || len(s.exemplars.all) > mostExemplars {
		s.exemplars.all = map[exemplarKey]Exemplar{}
	}
	for i := range spans {
		r := &spans[i]
		key := exemplarKey{RequestLabels{r.Listener, r.Route, r.Protocol.String(), r.Class.String()}, ledger.Power(r.Counted())}
		s.exemplars.all[key] = Exemplar{r.TraceID, r.Counted(), r.Began}
	}
	s.exemplars.mu.Unlock()
	s.requestSpans(spans)
	if s.opts.RequestSpans != nil {
		s.opts.RequestSpans(spans)
	}
}

// Exemplar finds a request of those labels whose duration is within the power of
// two of microseconds, see [ledger.Power].
func (s *Supervisor) Exemplar(labels RequestLabels, power int) (Exemplar, bool) {
	s.exemplars.mu.Lock()
	defer s.exemplars.mu.Unlock()
	e, ok := s.exemplars.all[exemplarKey{labels, power}]
	return e, ok
}
