package account

import (
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// Exemplar is a request that stands for others of its kind: its span was kept.
type Exemplar struct {
	TraceID  [16]byte
	Duration time.Duration
	Began    time.Time
}

// Exemplars has the latest for each kind of request, and power of two of its
// duration.
type Exemplars struct {
	mu  sync.Mutex
	all map[exemplarKey]Exemplar
}

type exemplarKey struct {
	labels RequestLabels
	power  int
}

// mostExemplars bounds what labels that come and go with configurations can take.
const mostExemplars = 4096

// Keep takes what a generation has kept.
func (e *Exemplars) Keep(spans []RequestSpan) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.all == nil || len(e.all) > mostExemplars {
		e.all = map[exemplarKey]Exemplar{}
	}
	for i := range spans {
		r := &spans[i]
		key := exemplarKey{RequestLabels{r.Listener, r.Route, r.Protocol.String(), r.Class.String()}, ledger.Power(r.Counted())}
		e.all[key] = Exemplar{r.TraceID, r.Counted(), r.Began}
	}
}

// Find finds a request of those labels whose duration is within the power of
// two of microseconds, see [ledger.Power].
func (e *Exemplars) Find(labels RequestLabels, power int) (Exemplar, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	found, ok := e.all[exemplarKey{labels, power}]
	return found, ok
}
