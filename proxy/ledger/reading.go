package ledger

import "time"

// DefaultSlow is how long a request takes whose span is kept for it, until
// [Ledger.SetSlow] says otherwise.
const DefaultSlow = time.Second

// Flows counts flows of one listener, or of several.
type Flows struct {
	Accepted uint64 `json:"accepted"`
	Closed   uint64 `json:"closed"`
	Reset    uint64 `json:"reset"`  // of the closed: by a reset, of theirs or ours
	Failed   uint64 `json:"failed"` // had a request of a bad class
}

// Open is how many flows there are.
func (f Flows) Open() uint64 { return f.Accepted - min(f.Closed, f.Accepted) }

// Plus is the sum of both.
func (f Flows) Plus(g Flows) Flows {
	return Flows{f.Accepted + g.Accepted, f.Closed + g.Closed, f.Reset + g.Reset, f.Failed + g.Failed}
}

func (f Flows) minus(g Flows) Flows {
	return Flows{f.Accepted - g.Accepted, f.Closed - g.Closed, f.Reset - g.Reset, f.Failed - g.Failed}
}

// ListenerReading is what one listener has counted.
type ListenerReading struct {
	Name    string
	Flows   Flows
	Started uint64 // requests
}

// Series counts the requests that have ended with one Key.
type Series struct {
	Key
	Histogram
}

// Reading is a ledger at one moment. The zero Reading is that of a generation
// that has counted nothing. Readings are not changed once taken.
type Reading struct {
	At         time.Time
	Generation uint64
	// Damage says why nothing may be concluded from the ledger; empty: it is whole.
	Damage string
	// Written reports whether the generation keeps the ledger at all. One that
	// does not has counted nothing, whatever it serves.
	Written bool
	// Beat is when the generation last said that it runs; every [BeatEvery], if it does.
	Beat time.Time
	// Oldest is how long the oldest request in flight has been so.
	Oldest time.Duration
	Cut    uint64 // flows and streams that a deadline ended in the middle of something
	// Strays counts packets of QUIC that named another slot, by that slot; see
	// [Writer.Stray]. Nil: there were none.
	Strays    map[uint8]uint64
	Untracked uint64 // requests that Oldest knows nothing of
	// Lost counts records that were overwritten before they were read: of all
	// requests, and of those whose span was to be kept.
	LostRequests, LostKept uint64

	Listeners []ListenerReading
	Routes    []string
	Series    []Series
}

// ListenerName is the name of a listener by its number in a key.
func (r *Reading) ListenerName(i uint16) string {
	if int(i) < len(r.Listeners) {
		return r.Listeners[i].Name
	}
	return "other"
}

// RouteName is the name of a route by its number in a key: "none" and "other" for
// those that are none.
func (r *Reading) RouteName(i uint16) string {
	switch {
	case int(i) < len(r.Routes):
		return r.Routes[i]
	case i == NoRoute:
		return "none"
	}
	return "other"
}

// Totals is a reading summed up.
type Totals struct {
	Flows    Flows
	Started  uint64
	Classes  [NumClasses]uint64
	Requests uint64 // that have ended
	InFlight uint64
	Duration Histogram
}

// Errors is how many requests ended badly.
func (t *Totals) Errors() (n uint64) {
	for c, count := range t.Classes {
		if Class(c).Bad() {
			n += count
		}
	}
	return n
}

// Total sums up all that was counted.
func (r *Reading) Total() Totals {
	t := r.Sum(func(Key) bool { return true })
	for _, l := range r.Listeners {
		t.Started += l.Started
		t.Flows = t.Flows.Plus(l.Flows)
	}
	t.InFlight = t.Started - min(t.Requests, t.Started)
	return t
}

// Sum sums up the requests whose key is wanted. It leaves out what has no key
// yet: flows, and requests in flight.
func (r *Reading) Sum(wanted func(Key) bool) (t Totals) {
	for i := range r.Series {
		if s := &r.Series[i]; wanted(s.Key) {
			t.Classes[s.Class] += s.Count
			t.Requests += s.Count
			t.Duration.Add(&s.Histogram)
		}
	}
	return t
}

// Since is what was counted between two readings of the same ledger. It is
// damaged if either of them is. The moments are the later one's.
func (r *Reading) Since(before *Reading) Reading {
	d := *r
	if d.Damage == "" {
		d.Damage = before.Damage
	}
	d.Cut -= min(before.Cut, d.Cut)
	d.Untracked -= min(before.Untracked, d.Untracked)
	d.LostRequests -= min(before.LostRequests, d.LostRequests)
	d.LostKept -= min(before.LostKept, d.LostKept)
	d.Strays = nil
	for slot, n := range r.Strays {
		if n -= min(before.Strays[slot], n); n > 0 {
			if d.Strays == nil {
				d.Strays = map[uint8]uint64{}
			}
			d.Strays[slot] = n
		}
	}
	d.Listeners = append([]ListenerReading(nil), r.Listeners...)
	for i := range d.Listeners {
		if i < len(before.Listeners) {
			d.Listeners[i].Flows = d.Listeners[i].Flows.minus(before.Listeners[i].Flows)
			d.Listeners[i].Started -= before.Listeners[i].Started
		}
	}
	was := make(map[Key]*Histogram, len(before.Series))
	for i := range before.Series {
		was[before.Series[i].Key] = &before.Series[i].Histogram
	}
	d.Series = append([]Series(nil), r.Series...)
	for i := range d.Series {
		if h := was[d.Series[i].Key]; h != nil {
			d.Series[i].sub(h)
		}
	}
	return d
}
