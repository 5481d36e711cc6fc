package account

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// lastShown is how many of a crashed generation's last requests are told one by one.
const lastShown = 5

// Testimony is what the ledger of a generation that crashed says of its end: how
// much was in flight, how its latest requests had ended, and the last of them. The
// ring of requests is for this alone: while a generation lives its counters and its
// kept spans say more. Nil: it kept no ledger, or a damaged one.
func (b *Book) Testimony() []string {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil || !b.last.Written || b.last.Damage != "" {
		return nil
	}
	var all []ledger.Record
	for range 2 { // what was being written the first time will never be finished
		b.ledger.Requests(func(r *ledger.Record) { all = append(all, *r) })
	}
	slices.SortFunc(all, func(x, y ledger.Record) int { return cmp.Compare(x.Start+x.Duration, y.Start+y.Duration) })
	total := b.last.Total()
	words := []string{fmt.Sprintf("generation %d had %d requests and streams in flight when it ended; %d had ended, and of the latest %d it is known how%s",
		b.generation, total.InFlight, total.Requests, len(all), classes(all))}
	for _, r := range all[max(0, len(all)-lastShown):] {
		words = append(words, b.tell(&r))
	}
	return words
}

// classes counts records by how they ended.
func classes(all []ledger.Record) string {
	var count [ledger.NumClasses]int
	for i := range all {
		count[all[i].Class]++
	}
	var words []string
	for c, n := range count {
		if n > 0 {
			words = append(words, fmt.Sprintf("%d %v", n, ledger.Class(c)))
		}
	}
	if words == nil {
		return ""
	}
	return ": " + strings.Join(words, ", ")
}

// tell is one request in words. b.mu is held.
func (b *Book) tell(r *ledger.Record) string {
	words := fmt.Sprintf("%s: %v on flow %d, listener %s, route %s: %v after %v",
		b.ledger.Time(r.Start+r.Duration).UTC().Format(time.RFC3339Nano), r.Protocol, r.Flow,
		b.ledger.ListenerName(r.Listener), b.ledger.RouteName(r.Route), r.Class, r.Duration)
	if r.Status != 0 {
		words += fmt.Sprintf(", status %d", r.Status)
	}
	if r.SpanID != [8]byte{} {
		words += fmt.Sprintf(", trace %x", r.TraceID)
	}
	return words
}
