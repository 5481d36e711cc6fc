package account

import (
	"fmt"
	"time"

	"github.com/baton-mesh/baton/proxy/ledger"
)

// LedgerStatus is what a generation has counted, summed up.
type LedgerStatus struct {
	// Damage says why nothing may be concluded from the ledger.
	Damage string `json:"damage,omitempty"`
	// Written is false if the generation does not keep its ledger.
	Written   bool              `json:"written"`
	Requests  uint64            `json:"requests"` // and streams, that have ended
	Errors    uint64            `json:"errors"`
	Classes   map[string]uint64 `json:"classes"`
	InFlight  uint64            `json:"in_flight"`
	OldestMS  float64           `json:"oldest_ms"` // how long the oldest in flight has been so
	Flows     ledger.Flows      `json:"flows"`
	OpenFlows uint64            `json:"open_flows"`
	P50MS     float64           `json:"p50_ms"` // of requests, not of streams
	P99MS     float64           `json:"p99_ms"`
	LostSpans uint64            `json:"lost_spans"`  // kept, and overwritten before they were read
	BeatAgeMS float64           `json:"beat_age_ms"` // since the generation said that it runs
	Cut       uint64            `json:"cut"`
	// Strays counts packets of QUIC that named another slot, by that slot: of a
	// generation that is dead they are to be reset, of a living one there is none.
	Strays map[string]uint64 `json:"strays,omitempty"`
	// ByListener has the listeners that have accepted anything.
	ByListener map[string]ListenerLedger `json:"by_listener"`
}

// ListenerLedger is what one listener of a generation has counted.
type ListenerLedger struct {
	Requests uint64       `json:"requests"`
	Errors   uint64       `json:"errors"`
	InFlight uint64       `json:"in_flight"`
	Flows    ledger.Flows `json:"flows"`
}

// Status sums up the ledger as it is now; nil without one.
func (b *Book) Status() *LedgerStatus {
	if b == nil {
		return nil
	}
	r := b.Read()
	t := r.Total()
	// How long a stream lasts is its client's affair.
	answered := r.Sum(func(k ledger.Key) bool { return k.Protocol != ledger.TCP && k.Protocol != ledger.UDP })
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	st := &LedgerStatus{
		Damage: r.Damage, Written: r.Written, Requests: t.Requests, Errors: t.Errors(), Classes: map[string]uint64{}, ByListener: map[string]ListenerLedger{},
		InFlight: t.InFlight, OldestMS: ms(r.Oldest), Flows: t.Flows, OpenFlows: t.Flows.Open(),
		P50MS: ms(answered.Duration.Quantile(0.5)), P99MS: ms(answered.Duration.Quantile(0.99)), LostSpans: r.LostKept, Cut: r.Cut, Strays: straysOf(&r),
	}
	if r.Written {
		st.BeatAgeMS = ms(r.At.Sub(r.Beat))
	}
	for c, n := range t.Classes {
		if n > 0 {
			st.Classes[ledger.Class(c).String()] = n
		}
	}
	for _, l := range r.Listeners {
		if l.Flows.Accepted > 0 {
			st.ByListener[l.Name] = ListenerLedger{InFlight: l.Started, Flows: l.Flows}
		}
	}
	for i := range r.Series {
		one := &r.Series[i]
		l, ok := st.ByListener[r.ListenerName(one.Listener)]
		if !ok {
			continue
		}
		l.Requests += one.Count
		l.InFlight -= min(one.Count, l.InFlight)
		if one.Class.Bad() {
			l.Errors += one.Count
		}
		st.ByListener[r.ListenerName(one.Listener)] = l
	}
	return st
}

// straysOf are strays as the status shows them, by slot.
func straysOf(r *ledger.Reading) map[string]uint64 {
	if len(r.Strays) == 0 {
		return nil
	}
	all := map[string]uint64{}
	for slot, n := range r.Strays {
		all[fmt.Sprint(slot)] = n
	}
	return all
}
