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
	Route      string // see [ledger.Reading.RouteName]
}

// book is the ledger of one generation and what the supervisor has read in it.
type book struct {
	spans func([]RequestSpan)

	mu     sync.Mutex
	ledger *ledger.Ledger // nil once it is closed: last is the last reading
	last   ledger.Reading
}

// newPhase marks, in the ledgers of both, the flows that come from now on: those
// alone are compared. What takes longer than all but one in a hundred did so far
// at the previous generation is slow from now on.
func (s *Supervisor) newPhase(r *release) {
	slow := ledger.DefaultSlow
	if r.previous != nil && r.previous.book != nil {
		before := r.previous.book.read()
		served := before.Sum(func(k ledger.Key) bool { return k.Arm != ledger.Probe && k.Protocol != ledger.TCP })
		if served.Requests >= enoughToCompare {
			slow = served.Duration.Quantile(0.99)
		}
	}
	for _, g := range []*generation{r.previous, r.candidate} {
		if g != nil && g.book != nil {
			g.book.phase(r.result.ID, slow)
		}
	}
}

// enoughToCompare is how many requests it takes for one in a hundred to be known.
const enoughToCompare = 1000

func (b *book) phase(n uint64, slow time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger != nil {
		b.ledger.SetPhase(n)
		b.ledger.SetSlow(slow)
	}
}

// openBook makes a ledger for a generation that will keep one. Without it the
// generation serves all the same.
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
	g.book = &book{spans: s.keepSpans, ledger: l}
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

// collect takes a reading and hands on the spans that were kept since the last
// time. Who gets them may wait for the supervisor's lock, whose holder may wait
// for a reading: so this book's is not held then.
func (b *book) collect() {
	if spans := b.kept(); len(spans) > 0 {
		b.spans(spans)
	}
}

func (b *book) kept() (spans []RequestSpan) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return nil
	}
	b.ledger.Kept(func(r *ledger.Record) {
		spans = append(spans, RequestSpan{Record: *r, Generation: b.ledger.Generation(), Began: b.ledger.Time(r.Start),
			Listener: b.ledger.ListenerName(r.Listener), Route: b.ledger.RouteName(r.Route)})
	})
	b.last = b.ledger.Read()
	return spans
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
