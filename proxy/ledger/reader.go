package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ledger is the ledger of one generation as the supervisor has it. Not for
// concurrent use.
type Ledger struct {
	fd     int
	raw    []byte
	mem    []atomic.Uint64
	shape  shape
	layout layout
	header map[int]uint64 // what must stand there
	names  []byte         // and after it

	wallOffset int64
	last       Reading
	keys       [numSeries]uint64 // as last seen
	strays     [numSlots]uint64  // likewise
	was        []uint64          // each counter, as last seen; see rose
	requests   []ringReader      // by shard
	kept       ringReader
	damage     error // the first, which stays
}

// Adopt takes over the ledger behind a memfd that an earlier supervisor made. It
// owns the descriptor from now on, also when it fails.
func Adopt(fd int) (*Ledger, error) {
	mem, s, err := mapWhole(fd, unix.PROT_READ)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("adopt a ledger: %w", err)
	}
	unix.Munmap(mem)
	return newLedger(fd, s)
}

// newLedger owns fd.
func newLedger(fd int, s shape) (*Ledger, error) {
	l := &Ledger{fd: fd, shape: s, layout: s.layout()}
	l.header = s.header(l.layout)
	var err error
	if l.raw, err = unix.Mmap(fd, 0, l.layout.size*8, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map the ledger of generation %d: %w", s.generation, err)
	}
	l.mem = words(l.raw)
	l.names = s.text()
	l.wallOffset = int64(l.mem[hWallOffset].Load())
	for shard := range s.shards {
		l.requests = append(l.requests, ringReader{ring: l.layout.recordRing(shard)})
	}
	l.kept = ringReader{ring: l.layout.keptRing()}
	l.was = make([]uint64, 1+s.shards*(len(s.listeners)*flowWords+2*numSeries))
	return l, nil
}

// FD is the memfd to pass on. It stays the ledger's.
func (l *Ledger) FD() int { return l.fd }

// Generation is whose ledger it is.
func (l *Ledger) Generation() uint64 { return l.shape.generation }

// ListenerName is as [Reading.ListenerName].
func (l *Ledger) ListenerName(i uint16) string {
	if int(i) < len(l.shape.listeners) {
		return l.shape.listeners[i]
	}
	return "other"
}

// RouteName is as [Reading.RouteName].
func (l *Ledger) RouteName(i uint16) string { return (&Reading{Routes: l.shape.routes}).RouteName(i) }

// Close unmaps the pages and closes the memfd. A generation that runs keeps its own.
func (l *Ledger) Close() error {
	return errors.Join(unix.Munmap(l.raw), unix.Close(l.fd))
}

// SetPhase begins a phase: from now on flows that were accepted before are told
// apart from those that come, by their [Arm]. A ledger begins in phase 0.
func (l *Ledger) SetPhase(phase uint64) { l.mem[hPhase].Store(phase) }

// SetSlow has the spans of requests kept that take longer than d. 0 or less is [DefaultSlow].
func (l *Ledger) SetSlow(d time.Duration) { l.mem[hSlow].Store(uint64(max(d, 0))) }

// Time is the time of day of a moment on CLOCK_MONOTONIC. The offset of the two
// is the one of when the ledger was made, so that a clock that is set does not
// reorder what was recorded.
func (l *Ledger) Time(mono time.Duration) time.Time { return time.Unix(0, l.wallOffset+int64(mono)) }

// Read reads the counters. What a damaged ledger had before it was damaged is
// still there.
func (l *Ledger) Read() Reading {
	if l.damage == nil {
		next := Reading{At: time.Now(), Generation: l.shape.generation, Routes: l.shape.routes}
		if err := l.guarded(func() error { return l.read(&next) }); err != nil {
			l.damage = err
		} else {
			l.last = next
		}
	}
	if l.damage != nil {
		l.last.At, l.last.Generation, l.last.Routes = time.Now(), l.shape.generation, l.shape.routes
		l.last.Damage = l.damage.Error()
	}
	return l.last
}

// Requests hands over the records of requests that ended since the last time,
// those that are still there.
func (l *Ledger) Requests(take func(*Record)) {
	for i := range l.requests {
		l.records(&l.requests[i], l.shape.request, take)
	}
}

// Kept hands over the spans kept since the last time, those that are still there.
// A record that is being written comes the next time: after the end of the
// generation one calls twice.
func (l *Ledger) Kept(take func(*Record)) { l.records(&l.kept, l.shape.kept, take) }

func (l *Ledger) records(ring *ringReader, decode func([]uint64) (Record, bool), take func(*Record)) {
	if l.damage != nil {
		return
	}
	l.damage = l.guarded(func() error {
		impossible := 0
		err := ring.read(l.mem, func(words []uint64) {
			if r, ok := decode(words); ok {
				take(&r)
			} else {
				impossible++
			}
		})
		if err == nil && impossible > 0 {
			err = fmt.Errorf("%d records say what cannot be", impossible)
		}
		return err
	})
}

// guarded turns a fault on the pages into an error: memory that the kernel could
// not give, or a file that is not what it was.
func (l *Ledger) guarded(read func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		if fault, ok := cause.(interface {
			error
			Addr() uintptr
		}); ok {
			err = fmt.Errorf("its pages cannot be read: %v", fault)
			return
		}
		panic(cause)
	}()
	return read()
}

// read fills in a reading, or says what is wrong with the pages.
func (l *Ledger) read(r *Reading) error {
	if v := l.mem[hVersion].Load(); v != Version {
		return fmt.Errorf("it has layout %d, this baton reads layout %d", v, Version)
	}
	for at, want := range l.header {
		if l.mem[at].Load() != want {
			return errors.New("its header was overwritten")
		}
	}
	if !bytes.Equal(l.raw[l.layout.names*8:][:len(l.names)], l.names) {
		return errors.New("its names were overwritten")
	}
	switch version := l.mem[hWriter].Load(); version {
	case 0:
		if l.last.Written {
			return errors.New("the mark of its writer is gone")
		}
	case Version:
		r.Written = true
	default:
		return fmt.Errorf("its writer keeps layout %d, this baton reads layout %d", version, Version)
	}
	r.Beat = l.Time(time.Duration(l.mem[hHeartbeat].Load()))
	var err error
	if r.Cut, err = l.rose(0, l.mem[hCut].Load()); err != nil {
		return err
	}

	if err := l.readStrays(r); err != nil {
		return err
	}

	// In this order a request or flow that ends meanwhile is not missed: it may
	// be taken for one that is still there.
	if err := l.readSeries(r); err != nil {
		return err
	}
	if err := l.readFlows(r); err != nil {
		return err
	}
	l.readInFlight(r)
	for i := range l.requests {
		r.LostRequests += l.requests[i].lost
	}
	r.LostKept = l.kept.lost
	return check(r)
}

// rose takes the value of a counter, which must have no less than before.
func (l *Ledger) rose(i int, v uint64) (uint64, error) {
	was := l.was[i]
	l.was[i] = v
	if v < was {
		return 0, fmt.Errorf("a counter fell from %d to %d", was, v)
	}
	return v, nil
}

func (l *Ledger) readStrays(r *Reading) error {
	for slot, was := range l.strays {
		n := l.mem[hStrays+slot].Load()
		switch {
		case n < was:
			return fmt.Errorf("a counter fell from %d to %d", was, n)
		case n > implausible:
			return fmt.Errorf("%d packets strayed from slot %d", n, slot)
		case n > 0:
			if r.Strays == nil {
				r.Strays = map[uint8]uint64{}
			}
			r.Strays[uint8(slot)] = n
		}
		l.strays[slot] = n
	}
	return nil
}

func (l *Ledger) readSeries(r *Reading) error {
	seen := make(map[uint64]bool)
	for i := range numSeries {
		packed := l.mem[l.layout.keys+i].Load()
		switch {
		case packed != l.keys[i] && l.keys[i] != 0:
			return errors.New("the key of a series was changed")
		case packed == 0:
			continue
		case !l.shape.valid(packed):
			return errors.New("a series has a key that cannot be")
		case seen[packed]:
			return errors.New("two series have one key")
		}
		seen[packed], l.keys[i] = true, packed
		s := Series{Key: unpack(packed)}
		for shard := range l.shape.shards {
			cell := l.mem[l.layout.cell(shard, i):][:cellWords]
			at := 1 + l.shape.shards*len(l.shape.listeners)*flowWords + 2*(i*l.shape.shards+shard)
			count, err := l.rose(at, cell[cCount].Load())
			if err != nil {
				return err
			}
			sum, err := l.rose(at+1, cell[cSum].Load())
			if err != nil {
				return err
			}
			s.Count += count
			s.Sum += time.Duration(sum)
			var buckets uint64
			for b := range NumBuckets {
				n := cell[cBuckets+b].Load()
				buckets += n
				s.Buckets[b] += n
			}
			if buckets < count || buckets-count > atOnce || count > implausible {
				return fmt.Errorf("a histogram has %d, and %d were counted", buckets, count)
			}
		}
		r.Series = append(r.Series, s)
	}
	return nil
}

// atOnce is how many requests may be on their way from a histogram to its count.
const atOnce = 1 << 16

func (l *Ledger) readFlows(r *Reading) (err error) {
	r.Listeners = make([]ListenerReading, len(l.shape.listeners))
	for i := range r.Listeners {
		to := &r.Listeners[i]
		to.Name = l.shape.listeners[i]
		for shard := range l.shape.shards {
			f := l.mem[l.layout.flow(&l.shape, shard, i):][:flowWords]
			var v [fUntracked + 1]uint64
			// What comes first in a flow's life is read last.
			for _, at := range []int{fReset, fFailed, fClosed, fAccepted, fUntracked, fStarted} {
				if v[at], err = l.rose(1+(shard*len(r.Listeners)+i)*flowWords+at, f[at].Load()); err != nil {
					return err
				}
				if v[at] > implausible {
					return fmt.Errorf("a counter of listener %s is at %d", to.Name, v[at])
				}
			}
			to.Flows = to.Flows.Plus(Flows{v[fAccepted], v[fClosed], v[fReset], v[fFailed]})
			to.Started += v[fStarted]
			r.Untracked += v[fUntracked]
		}
	}
	return nil
}

func (l *Ledger) readInFlight(r *Reading) {
	now, oldest := monotonic(), int64(0)
	for i := range l.shape.shards * inFlightSlots {
		if start := int64(l.mem[l.layout.inFlight+i].Load()); start > 0 && start < now && (oldest == 0 || start < oldest) {
			oldest = start
		}
	}
	if oldest > 0 {
		r.Oldest = time.Duration(now - oldest)
	}
}

// check compares a reading with itself.
func check(r *Reading) error {
	t := r.Total()
	switch {
	case t.Requests > t.Started:
		return fmt.Errorf("%d requests have ended and %d begun", t.Requests, t.Started)
	case t.Flows.Closed > t.Flows.Accepted:
		return fmt.Errorf("%d flows have closed and %d been accepted", t.Flows.Closed, t.Flows.Accepted)
	case !r.Written && t.Started+t.Flows.Accepted > 0:
		return errors.New("it counts, and nobody has begun to write it")
	}
	return nil
}
