package account

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// ErrNoLedger means that a generation keeps no account: it is another server, or
// an earlier supervisor started it.
var ErrNoLedger = errors.New("the generation keeps no ledger")

// Book is the ledger of one generation and what has been read in it. A nil Book is that
// of a generation which keeps none.
type Book struct {
	generation uint64
	spans      func([]RequestSpan)

	mu     sync.Mutex
	ledger *ledger.Ledger // nil once it is closed: last is the last reading
	last   ledger.Reading
}

// Create makes a ledger for a generation of a configuration; nil where it will keep
// none. Spans that are found in it go to spans, which is called with no lock held.
func Create(c *config.Config, generation uint64, spans func([]RequestSpan)) (*Book, error) {
	if !c.Proxy.Baton {
		return nil, nil
	}
	o := ledger.Options{Generation: generation, ServerID: c.Node.ServerID}
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
		return nil, err
	}
	return &Book{generation: generation, spans: spans, ledger: l}, nil
}

// Adopt goes on with the ledger of a generation that an earlier supervisor started. The
// descriptor is the book's if there is no error.
func Adopt(fd int, generation uint64, spans func([]RequestSpan)) (*Book, error) {
	l, err := ledger.Adopt(fd)
	if err != nil {
		return nil, err
	}
	return &Book{generation: generation, spans: spans, ledger: l}, nil
}

// FD is what the generation, and a later supervisor, find the pages by.
func (b *Book) FD() int { return b.ledger.FD() }

// enoughToCompare is how many requests it takes for one in a hundred to be known.
const enoughToCompare = 1000

// Slow is what takes longer than all but one in a hundred requests did so far.
func (b *Book) Slow() time.Duration {
	if b == nil {
		return ledger.DefaultSlow
	}
	now := b.Read()
	served := now.Sum(func(k ledger.Key) bool { return k.Arm != ledger.Probe && k.Protocol != ledger.TCP })
	if served.Requests < enoughToCompare {
		return ledger.DefaultSlow
	}
	return served.Duration.Quantile(0.99)
}

// BeginPhase marks the flows that come from now on, and says what is slow.
func (b *Book) BeginPhase(n uint64, slow time.Duration) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger != nil {
		b.ledger.SetPhase(n)
		b.ledger.SetSlow(slow)
	}
}

// Close frees the pages. What was read in them stays.
func (b *Book) Close() {
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

// Read takes a reading now, or of a closed book the last.
func (b *Book) Read() ledger.Reading {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger != nil {
		b.last = b.ledger.Read()
	}
	return b.last
}

// Collect takes a reading and hands on the spans that were kept since the last
// time. Who gets them may wait for the supervisor's lock, whose holder may wait
// for a reading: so this book's is not held then.
func (b *Book) Collect() {
	if spans := b.kept(); len(spans) > 0 {
		b.spans(spans)
	}
}

func (b *Book) kept() (spans []RequestSpan) {
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

// End reads the ledger of a generation whose process has ended.
func (b *Book) End() {
	if b == nil {
		return
	}
	b.Collect()
	b.Collect() // what was being written the first time will never be finished
}

// Reading is what the generation has counted up to now, or up to its death. It is
// taken from the pages at this moment. Two readings of one generation are
// compared by [ledger.Reading.Since]; one whose Damage is not empty is no base
// for a conclusion.
func (b *Book) Reading() (ledger.Reading, error) {
	if b == nil {
		return ledger.Reading{}, ErrNoLedger
	}
	r := b.Read()
	if !r.Written && r.Damage == "" {
		return r, fmt.Errorf("generation %d: %w", b.generation, ErrNoLedger)
	}
	return r, nil
}

// OpenDatagrams are connections of QUIC and flows of UDP that were open when the
// generation's process ended: one that ends by itself has closed them all.
func (b *Book) OpenDatagrams() (open uint64) {
	r, err := b.Reading()
	if err != nil {
		return 0
	}
	for _, l := range r.Listeners {
		if strings.HasSuffix(l.Name, contract.UDPSuffix) {
			open += l.Flows.Open()
		}
	}
	return open
}
