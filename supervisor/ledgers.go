package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// ledgerEvery is how often the ledgers are read. A reading takes some 100 µs a
// generation; rings of records must not run over in between.
const ledgerEvery = 200 * time.Millisecond

// RequestSpan is the span of a request, made after the fact of what a generation
// has kept in its ledger.
type RequestSpan struct {
	ledger.Record
	Generation uint64
	Began      time.Time
	Listener   string // names of what the record has numbers for
	Route      string // empty: none
}

// book is the ledger of one generation and what the supervisor has read in it.
type book struct {
	spans func([]RequestSpan)

	mu     sync.Mutex
	ledger *ledger.Ledger // nil once it is closed: last is the last reading
	last   ledger.Reading
}

// openBook makes a ledger for a generation that will keep one.
func (s *Supervisor) openBook(g *generation) error {
	c := g.recipe.config
	if !c.Proxy.Baton {
		return nil
	}
	o := ledger.Options{Generation: g.id, ServerID: c.Node.ServerID}
	for _, l := range c.Listeners {
		if l.Protocol.HasStreams() {
			o.Listeners = append(o.Listeners, l.Name)
		}
		if l.HasDatagrams() {
			// On their own: flows of TCP are compared with what the kernel counts.
			o.Listeners = append(o.Listeners, l.Name+contract.UDPSuffix)
		}
	}
	for _, r := range c.Routes {
		o.Routes = append(o.Routes, r.Name)
	}
	l, err := ledger.Create(o)
	if err != nil {
		return err
	}
	g.book = &book{spans: s.opts.RequestSpans, ledger: l}
	return nil
}

// close frees the pages. What was read in them stays.
func (b *book) close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger != nil {
		b.ledger.Close()
		b.ledger = nil
	}
}

// read takes a reading now.
func (b *book) read() ledger.Reading {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger != nil {
		b.last = b.ledger.Read()
	}
	return b.last
}

// collect takes a reading and hands on the spans that were kept since the last time.
func (b *book) collect() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return
	}
	var spans []RequestSpan
	b.ledger.Kept(func(r *ledger.Record) {
		spans = append(spans, RequestSpan{Record: *r, Generation: b.ledger.Generation(), Began: b.ledger.Time(r.Start),
			Listener: b.ledger.ListenerName(r.Listener), Route: b.ledger.RouteName(r.Route)})
	})
	b.last = b.ledger.Read()
	if b.spans != nil && len(spans) > 0 {
		b.spans(spans)
	}
}

// readLedgers reads the ledgers of all living generations until ctx ends.
func (s *Supervisor) readLedgers(ctx context.Context) {
	tick := time.NewTicker(ledgerEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, b := range s.books() {
			b.collect()
		}
	}
}

func (s *Supervisor) books() (all []*book) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		if g.book != nil {
			all = append(all, g.book)
		}
	}
	return all
}

// lastEntries reads the ledger of a generation whose process has ended.
func (b *book) lastEntries() {
	if b == nil {
		return
	}
	b.collect()
	b.collect() // what was being written the first time will never be finished
}

// ErrNoLedger means that a generation keeps no account: it is another server, or
// an earlier supervisor started it.
var ErrNoLedger = errors.New("the generation keeps no ledger")

// reading is what a generation has counted up to now, or up to its death. It is
// taken from the pages at this moment. Two readings of one generation are
// compared by [ledger.Reading.Since]; one whose Damage is not empty is no base
// for a conclusion.
func (g *generation) reading() (ledger.Reading, error) {
	if g.book == nil {
		return ledger.Reading{}, ErrNoLedger
	}
	r := g.book.read()
	if !r.Written && r.Damage == "" {
		return r, fmt.Errorf("generation %d: %w", g.id, ErrNoLedger)
	}
	return r, nil
}

// LedgerStatus is what a generation has counted, summed up.
type LedgerStatus struct {
	// Damage says why nothing may be concluded from the ledger.
	Damage string `json:"damage,omitempty"`
	// Written is false if the generation does not keep its ledger.
	Written    bool                      `json:"written"`
	Requests   uint64                    `json:"requests"` // and streams, that have ended
	Errors     uint64                    `json:"errors"`
	Classes    map[string]uint64         `json:"classes"`
	InFlight   uint64                    `json:"in_flight"`
	OldestMS   float64                   `json:"oldest_ms"` // how long the oldest in flight has been so
	Flows      ledger.Flows              `json:"flows"`
	OpenFlows  uint64                    `json:"open_flows"`
	P50MS      float64                   `json:"p50_ms"`
	P99MS      float64                   `json:"p99_ms"`
	LostSpans  uint64                    `json:"lost_spans"`  // kept, and overwritten before they were read
	BeatAgeMS  float64                   `json:"beat_age_ms"` // since the generation said that it runs
	Cut        uint64                    `json:"cut"`
	ByListener map[string]ListenerLedger `json:"by_listener"`
}

// ListenerLedger is what one listener of a generation has counted.
type ListenerLedger struct {
	Requests uint64       `json:"requests"`
	Errors   uint64       `json:"errors"`
	InFlight uint64       `json:"in_flight"`
	Flows    ledger.Flows `json:"flows"`
}

// status sums up the ledger as it is now; nil without one.
func (b *book) status() *LedgerStatus {
	if b == nil {
		return nil
	}
	r := b.read()
	t := r.Total()
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	st := &LedgerStatus{
		Damage: r.Damage, Written: r.Written, Requests: t.Requests, Errors: t.Errors(), Classes: map[string]uint64{}, ByListener: map[string]ListenerLedger{},
		InFlight: t.InFlight, OldestMS: ms(r.Oldest), Flows: t.Flows, OpenFlows: t.Flows.Open(),
		P50MS: ms(t.Duration.Quantile(0.5)), P99MS: ms(t.Duration.Quantile(0.99)), LostSpans: r.LostKept, Cut: r.Cut,
	}
	if r.Written {
		st.BeatAgeMS = ms(r.At.Sub(r.Beat))
	}
	for c, n := range t.Classes {
		if n > 0 {
			st.Classes[ledger.Class(c).String()] = n
		}
	}
	for i, l := range r.Listeners {
		sum := r.Sum(func(k ledger.Key) bool { return int(k.Listener) == i })
		st.ByListener[l.Name] = ListenerLedger{sum.Requests, sum.Errors(), l.Started - min(sum.Requests, l.Started), l.Flows}
	}
	return st
}
