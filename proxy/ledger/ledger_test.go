package ledger

import (
	"maps"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a ledger and its writer.
func pair(t testing.TB) (*Ledger, *Writer) {
	t.Helper()
	l, err := Create(Options{Generation: 7, ServerID: 42, Listeners: []string{"web", "raw"}, Routes: []string{"all", "api"}, Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	fd, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 0) // as a generation inherits it
	if err != nil {
		t.Fatal(err)
	}
	w, err := Open(fd)
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return l, w
}

var begin = time.Now()

// request is one request of a flow, from its begin to its end.
func request(f *Flow, r Record, took time.Duration) {
	c := f.Begin(begin)
	c.End(&r, took)
}

func TestReadingIsWhatWasWritten(t *testing.T) {
	l, w := pair(t)
	if r := l.Read(); r.Damage != "" || !r.Written || r.Generation != 7 || r.Total().Started != 0 {
		t.Errorf("at first %+v", r)
	}
	var a, b Flow
	w.Accept(&a, 0, begin)
	w.Accept(&b, 1, begin)
	request(&a, Record{Key: Key{Route: w.Route("api"), Class: Status2xx}, Status: 200}, 5*time.Millisecond)
	request(&a, Record{Key: Key{Route: w.Route("api"), Class: Status5xx}, Status: 502}, time.Millisecond)
	request(&a, Record{Key: Key{Route: w.Route("api"), Class: Status5xx}, Status: 502}, time.Millisecond)
	hanging := b.Begin(time.Now())
	a.Close(false)
	a.Close(true) // once

	r := l.Read()
	total := r.Total()
	if r.Damage != "" || total.Requests != 3 || total.InFlight != 1 || total.Errors() != 2 || total.Classes[Status2xx] != 1 {
		t.Errorf("%+v, damage %q", total.Classes, r.Damage)
	}
	if want := (Flows{Accepted: 2, Closed: 1, Failed: 1}); total.Flows != want || total.Flows.Open() != 1 {
		t.Errorf("flows %+v, want %+v", total.Flows, want)
	}
	if r.Listeners[0].Started != 3 || r.Listeners[1].Started != 1 || r.Oldest <= 0 {
		t.Errorf("%+v, oldest %v", r.Listeners, r.Oldest)
	}
	if q := total.Duration.Quantile(1); q < 5*time.Millisecond || q > 5*time.Millisecond*17/16 {
		t.Errorf("the longest took %v", q)
	}

	hanging.End(&Record{Key: Key{Route: OtherRoute, Protocol: TCP, Class: Ended}}, time.Second)
	b.Close(true)
	last := l.Read()
	d := last.Since(&r)
	if got := d.Total(); got.Requests != 1 || got.Classes[Ended] != 1 || got.Flows != (Flows{Closed: 1, Reset: 1}) {
		t.Errorf("in between %+v %+v", got.Classes, got.Flows)
	}
	if after := last.Total(); after.InFlight != 0 || last.Oldest != 0 {
		t.Errorf("%d in flight, oldest %v", after.InFlight, last.Oldest)
	}
}

func TestPhaseTellsOldFlowsFromNew(t *testing.T) {
	l, w := pair(t)
	var before, after Flow
	w.Accept(&before, 0, begin)
	request(&before, Record{Key: Key{Class: Status2xx}}, 0)
	l.SetPhase(1)
	w.Accept(&after, 0, begin)
	request(&before, Record{Key: Key{Class: Status2xx}}, 0)
	request(&after, Record{Key: Key{Class: Status2xx}}, 0)
	request(&after, Record{Key: Key{Class: Status2xx}, Flags: Probing}, 0)
	r := l.Read()
	for arm, want := range []uint64{New: 2, Old: 1, Probe: 1} {
		if got := r.Sum(func(k Key) bool { return k.Arm == Arm(arm) }); got.Requests != want {
			t.Errorf("%v: %d requests, want %d", Arm(arm), got.Requests, want)
		}
	}
}

// Readings beside writers are consistent, and nothing is counted twice or not at all.
func TestReadingBesideWriters(t *testing.T) {
	l, w := pair(t)
	const writers, each = 8, 2000
	var all sync.WaitGroup
	done := make(chan struct{})
	for i := range writers {
		all.Go(func() {
			for n := range each / 10 {
				var f Flow
				w.Accept(&f, i%2, time.Now())
				for range 10 {
					request(&f, Record{Key: Key{Route: uint16(n % 2), Class: Class(n % int(NumClasses))}}, time.Duration(n)*time.Microsecond)
				}
				f.Close(n%3 == 0)
			}
		})
	}
	go func() { all.Wait(); close(done) }()
	records := 0
	var r, before Reading
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		before, r = r, l.Read()
		if r.Damage != "" {
			t.Fatal(r.Damage)
		}
		if d := r.Since(&before); d.Total().Requests > writers*each {
			t.Fatalf("a difference of %d", d.Total().Requests)
		}
		l.Requests(func(*Record) { records++ })
	}
	l.Requests(func(*Record) { records++ })
	r = l.Read()
	total := r.Total()
	if r.Damage != "" || total.Requests != writers*each || total.InFlight != 0 || total.Flows.Accepted != writers*each/10 || total.Flows.Open() != 0 {
		t.Errorf("%d requests, %d in flight, %+v; %s", total.Requests, total.InFlight, total.Flows, r.Damage)
	}
	if uint64(records)+r.LostRequests != writers*each {
		t.Errorf("%d records and %d lost of %d", records, r.LostRequests, writers*each)
	}
}

func TestTooManySeriesCountAsOtherRoutes(t *testing.T) {
	routes := make([]string, 2000)
	for i := range routes {
		routes[i] = string(rune('a'+i%26)) + time.Duration(i).String()
	}
	l, err := Create(Options{Generation: 1, Listeners: []string{"web"}, Routes: routes, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := Open(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var f Flow
	w.Accept(&f, 0, begin)
	for i := range routes {
		request(&f, Record{Key: Key{Route: uint16(i), Class: Status2xx}}, 0)
	}
	r := l.Read()
	other := r.Sum(func(k Key) bool { return k.Route == OtherRoute })
	if total := r.Total(); r.Damage != "" || total.Requests != 2000 || other.Requests < 2000-numSeries || other.Requests > 2000-routeSeries/2 {
		t.Errorf("%d requests, %d of them of other routes; %s", total.Requests, other.Requests, r.Damage)
	}
}

func TestTooManyListenersCountAsOthers(t *testing.T) {
	listeners := make([]string, 3000)
	for i := range listeners {
		listeners[i] = time.Duration(i).String()
	}
	l, err := Create(Options{Generation: 1, Listeners: listeners, Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := Open(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range listeners {
		var f Flow
		w.Accept(&f, i, begin)
		request(&f, Record{Key: Key{Route: NoRoute, Class: Status2xx}}, 0)
	}
	r := l.Read()
	other := r.Sum(func(k Key) bool { return k.Listener == OtherListener })
	if total := r.Total(); r.Damage != "" || total.Requests != 3000 || other.Requests < 3000-numSeries || r.Listeners[2999].Flows.Accepted != 1 {
		t.Errorf("%d requests, %d of them of other listeners; %s", total.Requests, other.Requests, r.Damage)
	}
	l.Requests(func(r *Record) {
		if r.Listener == OtherListener {
			t.Error("a record does not tell its listener")
		}
	})
}

func TestStrays(t *testing.T) {
	l, w := pair(t)
	if r := l.Read(); r.Strays != nil {
		t.Errorf("%v", r.Strays)
	}
	w.Stray(0)
	w.Stray(255)
	before := l.Read()
	w.Stray(255)
	w.Stray(4)
	now := l.Read()
	since := now.Since(&before)
	if want := (map[uint8]uint64{0: 1, 4: 1, 255: 2}); !maps.Equal(now.Strays, want) {
		t.Errorf("%v, want %v", now.Strays, want)
	}
	if want := (map[uint8]uint64{4: 1, 255: 1}); !maps.Equal(since.Strays, want) {
		t.Errorf("since then %v, want %v", since.Strays, want)
	}
}

func TestNoLedgerNoAccount(t *testing.T) {
	var w *Writer
	var f Flow
	w.Accept(&f, 0, begin)
	w.Beat()
	w.Cut(1)
	w.Stray(1)
	request(&f, Record{}, 0)
	f.Close(true)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	_, w := pair(t)
	var f Flow
	w.Accept(&f, 0, begin)
	r := Record{Key: Key{Class: Status5xx}, Path: "/a", Method: "GET", Host: "example.org"} // kept, too
	if n := testing.AllocsPerRun(100, func() { request(&f, r, time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func TestBuckets(t *testing.T) {
	for i := range NumBuckets {
		low := BucketLow(i)
		if got := bucketOf(low); got != i {
			t.Errorf("%v falls into bucket %d, want %d", low, got, i)
		}
		if next := BucketLow(i + 1); i > 16 && float64(next-low) > 0.0626*float64(low) {
			t.Errorf("bucket %d is from %v to %v", i, low, next)
		}
	}
	if got := bucketOf(1000 * time.Hour); got != NumBuckets-1 {
		t.Errorf("a long time falls into bucket %d", got)
	}
	if bucketOf(-1) != 0 {
		t.Error("less than nothing")
	}
}

func BenchmarkRequest(b *testing.B) {
	_, w := pair(b)
	var f Flow
	w.Accept(&f, 0, begin)
	b.ReportAllocs()
	for b.Loop() {
		request(&f, Record{Key: Key{Class: Status2xx}}, 300*time.Microsecond)
	}
}
