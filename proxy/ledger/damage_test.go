package ledger

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// busy is a ledger that has been written to and read once, and the writer with
// two flows, the second of which has a request in flight.
func busy(t testing.TB) (*Ledger, *Writer, *Flow) {
	t.Helper()
	l, w := pair(t)
	var a, b Flow
	w.Accept(&a, 0, begin)
	w.Accept(&b, 1, begin)
	for i := range 100 {
		request(&a, Record{Key: Key{Route: uint16(i % 2), Class: Status2xx}, Path: "/"}, time.Duration(i)*time.Millisecond)
		request(&a, Record{Key: Key{Class: Status5xx}, Path: "/"}, time.Millisecond)
	}
	b.Begin(begin)
	a.Close(true)
	w.Cut(3)
	w.Stray(9)
	w.Stray(9)
	if r := l.Read(); r.Damage != "" {
		t.Fatal(r.Damage)
	}
	return l, w, &b
}

// punch makes a hole in the pages from word from on, as a generation could.
func punch(t *testing.T, l *Ledger, from, words int) {
	t.Helper()
	if err := unix.Fallocate(l.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from)*8, int64(words)*8); err != nil {
		t.Fatal(err)
	}
}

// usedKey is the word of the table with the key of a series, and its series.
func usedKey(t *testing.T, w *Writer) (at, series int) {
	t.Helper()
	for i := range numSeries {
		if w.mem[w.layout.keys+i].Load() != 0 {
			return w.layout.keys + i, i
		}
	}
	t.Fatal("no series is in use")
	return 0, 0
}

// usedCell is a word of a shard's cell that has counted.
func usedCell(t *testing.T, w *Writer) int {
	t.Helper()
	_, series := usedKey(t, w)
	for shard := range w.shape.shards {
		if at := w.layout.cell(shard, series); w.mem[at+cCount].Load() > 0 {
			return at
		}
	}
	t.Fatal("nothing was counted")
	return 0
}

func TestDamageIsSaid(t *testing.T) {
	flowsOf := func(w *Writer, listener int) int {
		for shard := range w.shape.shards {
			if at := w.layout.flow(&w.shape, shard, listener); w.mem[at].Load() > 0 {
				return at
			}
		}
		return 0
	}
	tests := []struct {
		name string
		harm func(t *testing.T, l *Ledger, w *Writer)
		want string
	}{
		{"no magic", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hMagic].Store(0) }, "header was overwritten"},
		{"another version", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hVersion].Store(2) }, "layout 2, this baton reads layout 1"},
		{"written in another version", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hWriter].Store(9) }, "writer keeps layout 9"},
		{"its writer gone", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hWriter].Store(0) }, "mark of its writer is gone"},
		{"another's", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hGeneration].Store(8) }, "header was overwritten"},
		{"another node's", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hServerID].Store(8) }, "header was overwritten"},
		{"more shards", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hShards].Store(1 << 60) }, "header was overwritten"},
		{"longer names", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hNameBytes].Store(1 << 60) }, "header was overwritten"},
		{"a larger size", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hSize].Add(4096) }, "header was overwritten"},
		{"all ones", func(t *testing.T, l *Ledger, w *Writer) { fill(w, 0, len(w.mem), ^uint64(0)) }, "layout"},
		{"all zeros", func(t *testing.T, l *Ledger, w *Writer) { fill(w, 0, len(w.mem), 0) }, "layout 0"},
		{"text over all", func(t *testing.T, l *Ledger, w *Writer) { fill(w, 0, len(w.mem), 0x6c6c6568206f6c6c) }, "layout"},
		{"flows that fall", func(t *testing.T, l *Ledger, w *Writer) { w.mem[flowsOf(w, 0)+fAccepted].Store(0) }, "fell from 1 to 0"},
		{"requests that fall", func(t *testing.T, l *Ledger, w *Writer) { w.mem[flowsOf(w, 0)+fStarted].Add(^uint64(0)) }, "fell from 200 to 199"},
		{"flows without number", func(t *testing.T, l *Ledger, w *Writer) { w.mem[flowsOf(w, 0)+fAccepted].Store(1 << 50) }, "listener web is at"},
		{"closed and never accepted", func(t *testing.T, l *Ledger, w *Writer) { w.mem[flowsOf(w, 0)+fClosed].Add(5) }, "6 flows have closed and 2 been accepted"},
		{"a series that falls", func(t *testing.T, l *Ledger, w *Writer) { w.mem[usedCell(t, w)+cCount].Store(1) }, "fell from"},
		{"a sum that falls", func(t *testing.T, l *Ledger, w *Writer) { w.mem[usedCell(t, w)+cSum].Store(0) }, "fell from"},
		{"a series without number", func(t *testing.T, l *Ledger, w *Writer) { w.mem[usedCell(t, w)+cCount].Store(1 << 63) }, "a histogram has"},
		{"a bucket emptied", func(t *testing.T, l *Ledger, w *Writer) { fill(w, usedCell(t, w)+cBuckets, NumBuckets, 0) }, "a histogram has 0"},
		{"a bucket without number", func(t *testing.T, l *Ledger, w *Writer) { w.mem[usedCell(t, w)+cBuckets].Add(1 << 40) }, "a histogram has"},
		{"buckets that wrap around", func(t *testing.T, l *Ledger, w *Writer) { fill(w, usedCell(t, w)+cBuckets, 2, 1<<63) }, "a histogram has"},
		{"requests that never began", func(t *testing.T, l *Ledger, w *Writer) {
			at := usedCell(t, w)
			w.mem[at+cCount].Add(50)
			w.mem[at+cBuckets].Add(50)
		}, "requests have ended and 201 begun"},
		{"a key erased", func(t *testing.T, l *Ledger, w *Writer) { at, _ := usedKey(t, w); w.mem[at].Store(0) }, "key of a series was changed"},
		{"a key of no listener", func(t *testing.T, l *Ledger, w *Writer) {
			w.mem[w.layout.keys+free(w)].Store(Key{Listener: 9}.pack())
		}, "a key that cannot be"},
		{"a key of no class", func(t *testing.T, l *Ledger, w *Writer) {
			w.mem[w.layout.keys+free(w)].Store(Key{Class: NumClasses}.pack())
		}, "a key that cannot be"},
		{"a key with more to it", func(t *testing.T, l *Ledger, w *Writer) {
			w.mem[w.layout.keys+free(w)].Store(Key{}.pack() | 1<<58)
		}, "a key that cannot be"},
		{"a key twice", func(t *testing.T, l *Ledger, w *Writer) {
			at, _ := usedKey(t, w)
			w.mem[w.layout.keys+free(w)].Store(w.mem[at].Load())
		}, "two series have one key"},
		{"the cut that falls", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hCut].Store(1) }, "fell from 3 to 1"},
		{"strays that fall", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hStrays+9].Store(1) }, "fell from 2 to 1"},
		{"strays without number", func(t *testing.T, l *Ledger, w *Writer) { w.mem[hStrays+255].Store(1 << 50) }, "strayed from slot 255"},
		{"a cursor that falls", func(t *testing.T, l *Ledger, w *Writer) {
			l.Kept(func(*Record) {})
			w.mem[w.layout.kept].Store(1)
		}, "cursor stands where it cannot"},
		{"a cursor far ahead", func(t *testing.T, l *Ledger, w *Writer) { w.mem[w.layout.kept].Store(1 << 60) }, "cursor stands where it cannot"},
		{"records of nobody", func(t *testing.T, l *Ledger, w *Writer) { scribbleRecords(w, ^uint64(0)) }, "records say what cannot be"},
		{"text beyond the end of its record", func(t *testing.T, l *Ledger, w *Writer) {
			ring := w.layout.keptRing()
			ring.slot(w.mem, 0)[12].Store(^uint64(0))
		}, "records say what cannot be"},
		{"a hole in the header", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, 0, pageWords) }, "layout 0"},
		{"a hole in the names", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, l.layout.names, pageWords) }, "names were overwritten"},
		{"a hole in the keys", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, l.layout.keys, numSeries) }, "key of a series was changed"},
		{"a hole in the flows", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, l.layout.flows, pageWords) }, "fell from"},
		{"a hole in a histogram", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, usedCell(t, w), cellWords) }, "fell from"},
		{"a hole in all of it", func(t *testing.T, l *Ledger, w *Writer) { punch(t, l, 0, l.layout.size) }, "layout 0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, w, _ := busy(t)
			before := l.Read()
			test.harm(t, l, w)
			l.Read()
			l.Kept(func(*Record) {})
			r := l.Read()
			if !strings.Contains(r.Damage, test.want) {
				t.Errorf("it says %q, want %q", r.Damage, test.want)
			}
			// What was true before stays to be seen, and damage does not heal.
			if a, b := r.Total(), before.Total(); a.Requests != b.Requests || a.Flows != b.Flows {
				t.Errorf("%d requests, %d before the damage", a.Requests, b.Requests)
			}
			since := r.Since(&before)
			if again := l.Read(); again.Damage != r.Damage || since.Damage == "" {
				t.Errorf("later it says %q, and the difference %q", again.Damage, since.Damage)
			}
			// The generation itself goes on.
			var f Flow
			w.Accept(&f, 0, begin)
			request(&f, Record{Key: Key{Class: Status2xx}}, 0)
			f.Close(false)
		})
	}
}

func fill(w *Writer, from, n int, v uint64) {
	for i := from; i < from+n; i++ {
		w.mem[i].Store(v)
	}
}

// free is a place in the table of series that nobody has.
func free(w *Writer) int {
	for i := range numSeries {
		if w.mem[w.layout.keys+i].Load() == 0 {
			return i
		}
	}
	return -1
}

// scribbleRecords overwrites the kept records, but for the words that say that
// they are whole.
func scribbleRecords(w *Writer, v uint64) {
	ring := w.layout.keptRing()
	for i := range w.mem[ring.at].Load() {
		slot := ring.slot(w.mem, i)
		for j := 1; j < len(slot); j++ {
			slot[j].Store(v)
		}
	}
}

// What cannot be a ledger is not opened, by neither side.
func TestWhatIsNoLedgerIsRefused(t *testing.T) {
	memfd := func(size int64, seal int, content ...uint64) int {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, size); err != nil {
			t.Fatal(err)
		}
		mem := make([]byte, 0, 8*len(content))
		for _, w := range content {
			for i := range 8 {
				mem = append(mem, byte(w>>(8*i)))
			}
		}
		if _, err := unix.Pwrite(fd, mem, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seal); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		fd   int
		want string
	}{
		{"a device", null, "no sealed memfd"},
		{"not sealed", memfd(1<<20, 0), "no sealed memfd"},
		{"empty", memfd(0, seals), "0 bytes are no ledger"},
		{"zeros", memfd(1<<20, seals), "its magic is 0x0"},
		{"a later layout", memfd(1<<20, seals, magic, 7), "layout 7, this build knows layout 1"},
		{"too many shards", memfd(1<<20, seals, magic, Version, 1<<20, 1, 1, 1<<40), "header does not fit"},
		{"names beyond the end", memfd(4096, seals, magic, Version, 4096, 1, 1, 1, 1, 1, 1<<19), "header does not fit"},
		{"fewer names", memfd(1<<20, seals, magic, Version, 1<<20, 1, 1, 1, 5, 5, 0), "names are not as many"},
		{"another size", memfd(1<<20, seals, magic, Version, 1<<20, 1, 1, 1, 0, 0, 0), "its header speaks of"},
	}
	for _, test := range tests {
		if w, err := Open(test.fd); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Open: %v, %v; want %q", test.name, w, err, test.want)
		}
		if l, err := Adopt(test.fd); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Adopt: %v, %v; want %q", test.name, l, err, test.want)
		}
	}
}

func TestAdoptedLedgerGoesOn(t *testing.T) {
	l, _, f := busy(t)
	fd, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	next, err := Adopt(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	request(f, Record{Key: Key{Class: Status2xx}}, 0)
	a, b := l.Read(), next.Read()
	if x, y := a.Total(), b.Total(); x.Requests != y.Requests || x.InFlight != y.InFlight || b.Damage != "" || b.Generation != 7 {
		t.Errorf("%d requests, the first reader says %d; %s", y.Requests, x.Requests, b.Damage)
	}
	if next.ListenerName(1) != "raw" || next.RouteName(1) != "api" || next.RouteName(NoRoute) != "none" {
		t.Errorf("%q, %q", next.ListenerName(1), next.RouteName(1))
	}
}

// The seals make this impossible for a ledger of ours. Should memory be missing
// all the same, reading is an error and not the end of the supervisor.
func TestMissingMemoryIsAnError(t *testing.T) {
	s := shape{generation: 1, shards: 1, listeners: []string{"web"}}
	l := s.layout()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, int64(l.size)*8); err != nil {
		t.Fatal(err)
	}
	if err := s.write(fd, l); err != nil {
		t.Fatal(err)
	}
	led, err := newLedger(fd, s)
	if err != nil {
		t.Fatal(err)
	}
	defer led.Close()
	if r := led.Read(); r.Damage != "" {
		t.Fatal(r.Damage)
	}
	if err := unix.Ftruncate(fd, 4096); err != nil {
		t.Fatal(err)
	}
	led.Kept(func(*Record) {})
	if r := led.Read(); !strings.Contains(r.Damage, "its pages cannot be read") {
		t.Errorf("it says %q", r.Damage)
	}
}

// Whatever a generation writes wherever it likes, its ledger is read without a
// panic, its records are of a form that can be passed on, and one that has
// changed in a way that counters cannot is not read as whole.
func FuzzScribble(f *testing.F) {
	f.Add(uint32(0), uint64(0), uint32(1))
	f.Add(uint32(1), uint64(2), uint32(1))
	f.Add(uint32(600), ^uint64(0), uint32(4000))
	f.Add(uint32(pageWords*2), Key{Listener: 1, Class: Left}.pack(), uint32(1))
	f.Fuzz(func(t *testing.T, at uint32, value uint64, n uint32) {
		l, w, flow := busy(t)
		before := l.Read()
		rnd := rand.New(rand.NewPCG(value, uint64(at)))
		for i := range n % 2000 {
			// Mostly in a row, as a stray copy does, and some anywhere.
			to := (int(at) + int(i)) % len(w.mem)
			if i%16 == 15 {
				to = rnd.IntN(len(w.mem))
			}
			w.mem[to].Store(value)
			if i%3 == 1 {
				value = rnd.Uint64()
			}
		}
		check := func(r *Record) {
			if int(r.Listener) >= len(w.shape.listeners) || r.Duration < 0 || r.Start < 0 || len(r.Path) > 3*textBytes {
				t.Fatalf("%+v", r)
			}
			l.Time(r.Start)
		}
		for range 2 {
			l.Requests(check)
			l.Kept(check)
			r := l.Read()
			total := r.Total()
			if was := before.Total(); total.Requests < was.Requests || total.Started < was.Started || total.Flows.Accepted < was.Flows.Accepted {
				t.Fatalf("a count fell unnoticed: %+v", total)
			}
			if total.Requests > total.Started || total.InFlight != total.Started-total.Requests {
				t.Fatalf("%d of %d requests, %d in flight", total.Requests, total.Started, total.InFlight)
			}
			total.Duration.Quantile(0.99)
			request(flow, Record{Key: Key{Class: Status5xx}}, 0)
		}
	})
}
