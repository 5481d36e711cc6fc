package ledger

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Writer is a ledger as the generation has it. A nil Writer keeps no account,
// and nor do the flows and calls that come of it. Its methods may be called by
// several goroutines.
type Writer struct {
	raw    []byte
	mem    []atomic.Uint64
	shape  shape
	layout layout

	base     time.Time // with the monotonic clock that baseMono has read
	baseMono int64
}

// Open maps the ledger behind a memfd, which may be closed then.
func Open(fd int) (*Writer, error) {
	mem, s, err := mapWhole(fd, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	w := &Writer{raw: mem, mem: words(mem), shape: s, layout: s.layout(), base: time.Now(), baseMono: monotonic()}
	w.mem[hWriter].Store(Version)
	w.Beat()
	return w, nil
}

// Close unmaps the ledger. Nothing may be written afterwards.
func (w *Writer) Close() error {
	if w == nil {
		return nil
	}
	return unix.Munmap(w.raw)
}

// Listener is the number of a listener by name.
func (w *Writer) Listener(name string) (int, bool) {
	if w == nil {
		return 0, true
	}
	i := slices.Index(w.shape.listeners, name)
	return i, i >= 0
}

// Route is the number of a route by name; OtherRoute if the ledger has none of that name.
func (w *Writer) Route(name string) uint16 {
	if w != nil {
		if i := slices.Index(w.shape.routes, name); i >= 0 {
			return uint16(i)
		}
	}
	return OtherRoute
}

// Beat says that the generation runs. Called every [BeatEvery].
func (w *Writer) Beat() {
	if w != nil {
		w.mem[hHeartbeat].Store(uint64(w.mono(time.Now())))
	}
}

// BeatEvery is how often a generation says that it runs.
const BeatEvery = 200 * time.Millisecond

// Cut counts flows, or streams of one, that a deadline ended in the middle of something.
func (w *Writer) Cut(n int) {
	if w != nil && n > 0 {
		w.mem[hCut].Add(uint64(n))
	}
}

// Stray counts a packet of QUIC whose connection ID names another slot of this node
// than the generation's own. Of a slot that is dead one of the living ones is to
// hear; of a living one nobody but itself.
func (w *Writer) Stray(slot uint8) {
	if w != nil {
		w.mem[hStrays+int(slot)].Add(1)
	}
}

// Settle waits until all requests that have begun have ended, at most for the
// time given. Whoever served one may have closed its connection and not yet said
// so here.
func (w *Writer) Settle(within time.Duration) {
	if w == nil {
		return
	}
	for late := time.Now().Add(within); w.inFlight() > 0 && time.Now().Before(late); time.Sleep(time.Millisecond) {
	}
}

func (w *Writer) inFlight() int64 {
	var n int64
	for i := range numSeries {
		if w.mem[w.layout.keys+i].Load() == 0 {
			continue
		}
		for shard := range w.shape.shards {
			n -= int64(w.mem[w.layout.cell(shard, i)+cCount].Load())
		}
	}
	for i := range w.shape.shards * len(w.shape.listeners) {
		n += int64(w.mem[w.layout.flows+i*flowWords+fStarted].Load())
	}
	return n
}

func (w *Writer) mono(t time.Time) int64 { return w.baseMono + int64(t.Sub(w.base)) }

// Flow is the account of one accepted connection. The zero value keeps none.
type Flow struct {
	w        *Writer
	shard    int
	listener uint16
	phase    uint64
	number   uint64
	accepted int64         // CLOCK_MONOTONIC, ns
	slots    uint64        // where its requests are in flight
	series   atomic.Uint32 // of the request before, or any: a guess
	requests atomic.Uint32
	failed   atomic.Bool
	closed   atomic.Bool
}

// Accept begins the account of a flow that a listener has accepted.
func (w *Writer) Accept(f *Flow, listener int, now time.Time) {
	if w == nil {
		return
	}
	f.number = w.mem[hNextFlow].Add(1)
	shards := uint64(w.shape.shards)
	f.w, f.shard, f.listener = w, int(f.number%shards), uint16(listener)
	f.phase, f.accepted = w.mem[hPhase].Load(), w.mono(now)
	f.slots = f.number / shards * 8
	f.counters()[fAccepted].Add(1)
}

func (f *Flow) counters() []atomic.Uint64 {
	at := f.w.layout.flow(&f.w.shape, f.shard, int(f.listener))
	return f.w.mem[at : at+flowWords]
}

// Close ends the account, once. Reset says that the flow did not end in peace.
func (f *Flow) Close(reset bool) {
	if f.w == nil || f.closed.Swap(true) {
		return
	}
	c := f.counters()
	if reset {
		c[fReset].Add(1)
	}
	c[fClosed].Add(1)
}

// Call is one request of a flow, or its one stream. The zero value keeps no account.
type Call struct {
	flow  *Flow
	start int64 // CLOCK_MONOTONIC, ns
	index uint32
	slot  *atomic.Uint64 // where it stands among those in flight; nil: there was no room
}

// Begin counts a request as in flight. It must be ended.
func (f *Flow) Begin(now time.Time) Call {
	if f.w == nil {
		return Call{}
	}
	c := Call{flow: f, start: f.w.mono(now), index: f.requests.Add(1) - 1}
	counters := f.counters()
	counters[fStarted].Add(1)

	// Where the request falls is spread by the numbers of flow and request.
	slots := f.w.mem[f.w.layout.inFlight+f.shard*inFlightSlots:][:inFlightSlots]
	at := f.slots + uint64(c.index)
	for i := range uint64(8) {
		if slot := &slots[(at+i)%inFlightSlots]; slot.Load() == 0 && slot.CompareAndSwap(0, uint64(c.start)) {
			c.slot = slot
			return c
		}
	}
	counters[fUntracked].Add(1)
	return c
}

// Kept says that the call has an account.
func (c *Call) Kept() bool { return c.flow != nil }

// End counts the request, once, and keeps its span if there is reason to. It took
// so long, by the same clock as when it began. Of r
// it takes Route, Protocol, Class, Status, Head, the text and what of the trace
// the caller has given; Flags may have Sampled, Probing and Anomalous. The rest it fills in.
func (c *Call) End(r *Record, took time.Duration) {
	f := c.flow
	if f == nil {
		return
	}
	w := f.w
	r.Listener, r.Flow, r.Index = f.listener, f.number, c.index
	r.Start, r.Duration = time.Duration(c.start), took
	r.FlowAge = time.Duration(c.start - f.accepted)
	switch {
	case r.Flags&Probing != 0:
		r.Arm = Probe
	case f.phase != w.mem[hPhase].Load():
		r.Arm = Old
	}
	counted := r.Counted()

	series := int(f.series.Load())
	if w.mem[w.layout.keys+series].Load() != r.pack() { // requests of a flow are much alike
		series = w.series(r.Key)
		f.series.Store(uint32(series))
	}
	cell := w.mem[w.layout.cell(f.shard, series):][:cellWords]
	// Count last: whoever reads it first finds that the buckets have no less.
	cell[cBuckets+bucketOf(counted)].Add(1)
	cell[cSum].Add(uint64(max(counted, 0)))
	cell[cCount].Add(1)
	if c.slot != nil {
		c.slot.Store(0)
	}
	if r.Class.Bad() {
		r.Flags |= Erred
		if !f.failed.Swap(true) {
			f.counters()[fFailed].Add(1)
		}
	}

	drawn := r.TraceID == [16]byte{}
	if drawn {
		binary.BigEndian.PutUint64(r.TraceID[8:], rand.Uint64()|1) // never zero
	}
	slow := time.Duration(w.mem[hSlow].Load())
	if slow <= 0 {
		slow = DefaultSlow
	}
	if counted > slow {
		r.Flags |= Slow
	}
	if Drawn(r.TraceID) {
		r.Flags |= Chance
	}
	if r.Flags&Keep != 0 {
		// Others are looked up by nobody: half an ID is enough for them.
		if drawn {
			binary.BigEndian.PutUint64(r.TraceID[:8], rand.Uint64())
		}
		if r.SpanID == [8]byte{} {
			r.SpanID = NewSpanID()
		}
	}
	if slot, done := w.layout.recordRing(f.shard).claim(w.mem); slot != nil {
		r.putRequest(slot, done)
	}
	if r.Flags&Keep != 0 {
		if slot, done := w.layout.keptRing().claim(w.mem); slot != nil {
			r.putKept(slot, done)
		}
	}
	c.flow = nil
}

// Drawn reports whether a trace is of the one in a hundred that are kept for no other
// reason: by the random part of its ID, the last 56 bits (W3C Trace Context Level 2,
// 3.2.2.3), and from a threshold on, as OpenTelemetry's consistent sampling has it. So
// every node that a trace passes draws alike, and who samples more has these as well.
func Drawn(traceID [16]byte) bool {
	const most = 1 << 56
	return binary.BigEndian.Uint64(traceID[8:])&(most-1) >= most/100*99
}

// NewSpanID draws the ID of a span.
func NewSpanID() (id [8]byte) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64()|1) // never zero
	return id
}

// series finds the place of a key, and takes one if it has none yet. When there
// are too many, routes are no longer told apart, and then listeners.
func (w *Writer) series(k Key) int {
	if i, ok := w.find(k, routeSeries); ok {
		return i
	}
	k.Route = OtherRoute
	if i, ok := w.find(k, listenSeries); ok {
		return i
	}
	k.Listener = OtherListener
	if i, ok := w.find(k, numSeries); ok {
		return i
	}
	// There is room for all of those, unless somebody has scribbled over the keys.
	return int(mix(k.pack()) % numSeries)
}

func (w *Writer) find(k Key, most uint64) (int, bool) {
	packed := k.pack()
	keys := w.mem[w.layout.keys:][:numSeries]
	at := mix(packed)
	for i := range uint64(numSeries) {
		n := int((at + i) % numSeries)
		have := keys[n].Load()
		if have == packed {
			return n, true
		}
		if have != 0 {
			continue
		}
		if w.mem[hUsed].Load() >= most {
			return 0, false
		}
		if keys[n].CompareAndSwap(0, packed) {
			w.mem[hUsed].Add(1)
			return n, true
		}
		if keys[n].Load() == packed {
			return n, true
		}
	}
	return 0, false
}

// mix spreads keys, which differ in a few bits, over the table (the finalizer of
// MurmurHash3, public domain).
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
