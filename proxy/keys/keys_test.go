package keys

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/quicid"
)

// open makes a page and a reader of it.
func open(t *testing.T, tickets ...Ticket) (*Page, *Reader) {
	t.Helper()
	p, err := New(tickets...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(p.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		r.Close()
	})
	return p, r
}

func read(t *testing.T, r *Reader) []Ticket {
	t.Helper()
	tickets, sequence, err := r.Tickets()
	if err != nil {
		t.Fatal(err)
	}
	if sequence != r.Sequence() {
		t.Errorf("keys of sequence %d, the page is at %d", sequence, r.Sequence())
	}
	return tickets
}

func TestRotate(t *testing.T) {
	p, r := open(t)
	first := read(t, r)
	if len(first) != 1 || first[0].Key == [32]byte{} || time.Since(first[0].Created) > time.Minute {
		t.Fatalf("a new page has %v", first)
	}
	before := r.Sequence()
	day := time.Unix(2_000_000_000, 0)
	p.Rotate(day)
	if r.Sequence() == before {
		t.Error("the sequence is as before")
	}
	got := read(t, r)
	if len(got) != 2 || got[1] != first[0] || !got[0].Created.Equal(day) || got[0].Key == got[1].Key {
		t.Fatalf("after a rotation: %v, before: %v", got, first)
	}
	for range MaxTickets - 2 {
		p.Rotate(day)
	}
	if got := read(t, r); len(got) != MaxTickets || got[MaxTickets-1] != first[0] {
		t.Fatalf("%d keys, and the oldest is not the first", len(got))
	}
	p.Rotate(day)
	if got := read(t, r); len(got) != MaxTickets || got[MaxTickets-1] == first[0] {
		t.Fatalf("%d keys, and the first is still there", len(got))
	}
}

func TestReplacedPageKeepsTheKeys(t *testing.T) {
	old, _ := open(t)
	old.Rotate(time.Now())
	_, r := open(t, old.Tickets()...)
	got, want := read(t, r), old.Tickets()
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Whoever else holds the memfd can do nothing to it.
func TestOnlyThePageWrites(t *testing.T) {
	p, r := open(t)
	before := read(t, r)
	if _, err := unix.Pwrite(p.FD(), make([]byte, size), 0); err == nil {
		t.Error("written by descriptor")
	}
	if _, err := unix.Mmap(p.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("mapped to write a second time")
	}
	if err := unix.Ftruncate(p.FD(), 0); err == nil {
		t.Error("made shorter")
	}
	if got := read(t, r); len(got) != 1 || got[0] != before[0] {
		t.Errorf("keys %v, were %v", got, before)
	}
	p.Rotate(time.Now())
	if got := read(t, r); len(got) != 2 {
		t.Errorf("the page's own rotation: %v", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	memfd := func(length int64, seal bool) int {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Ftruncate(fd, length); err != nil {
			t.Fatal(err)
		}
		if seal {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	for name, fd := range map[string]int{
		"not sealed": memfd(size, false), "short": memfd(size-1, true), "empty": memfd(size, true), "standard input": 0,
	} {
		if r, err := Open(fd); err == nil {
			r.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// A reader never mixes the keys of two moments.
func TestReadersAndTheWriterDoNotMeet(t *testing.T) {
	p, r := open(t)
	stop := make(chan struct{})
	done := make(chan struct{})
	defer func() { close(stop); <-done }()
	go func() {
		defer close(done)
		for day := int64(0); ; day++ {
			select {
			case <-stop:
				return
			default:
				p.Rotate(time.Unix(day, 0))
			}
		}
	}()
	for read := 0; read < 20000; read++ {
		got, _, err := r.Tickets()
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(got) && len(got) == MaxTickets && got[i-1].Created.Unix() > MaxTickets; i++ {
			if got[i-1].Created.Unix() != got[i].Created.Unix()+1 {
				t.Fatalf("keys of two moments: %v and %v", got[i-1].Created, got[i].Created)
			}
		}
	}
}

// How connection IDs are written changes in place, and is handed on to the page that
// comes after.
func TestIDs(t *testing.T) {
	p, r := open(t)
	if ids, _, err := r.IDs(); err != nil || ids != (IDs{}) {
		t.Fatalf("a new page: %v, %v", ids, err)
	}
	before, tickets := r.Sequence(), read(t, r)
	want := IDs{5, quicid.Key{1, 2, 3, 15: 9}, [6]quicid.Key{0: {7}, 4: {1, 2, 3, 15: 9}, 5: {15: 8}}}
	p.WriteIDs(want)
	ids, sequence, err := r.IDs()
	if err != nil || ids != want || sequence == before || p.IDs() != want {
		t.Errorf("got %v of sequence %d, %v", ids, sequence, err)
	}
	if got := read(t, r); len(got) != 1 || got[0] != tickets[0] {
		t.Errorf("the tickets are %v, were %v", got, tickets)
	}
	next, err := After(r)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.IDs() != want {
		t.Errorf("the page after has %v", next.IDs())
	}
}

// Whose writer has died in the middle of a change is still good for what it was not
// changing.
func TestAfterATornPage(t *testing.T) {
	p, r := open(t)
	words(p.mem)[sequenceAt].Add(1)
	if _, _, err := r.Tickets(); err == nil {
		t.Error("a torn page is read")
	}
	next, err := After(r)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	q, _ := r.QUIC()
	if got := (QUIC{load(words(next.mem)[quicAt:]), load(words(next.mem)[quicAt+keyWords:])}); got != q {
		t.Error("the keys of QUIC are others")
	}
	if len(next.Tickets()) != 1 {
		t.Errorf("it has %d tickets", len(next.Tickets()))
	}
}
