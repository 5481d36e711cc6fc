package judge

import (
	"errors"
	"testing"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/account"
)

// books is a case whose candidate keeps books of its listener, and what reads them.
type books struct {
	*Case
	t     *testing.T
	reads int // of a listener
}

func openBooks(t *testing.T) *books {
	c, now := two()
	s := now.Sides[2]
	s.Balances = map[string]Balance{"web": {Established: 100, Accepted: 100}}
	now.Sides[2] = s
	return &books{Case: c, t: t}
}

// audit looks n times at books that say the same twice, unless they move meanwhile.
func (b *books) audit(n int, says func(look int) Balance, moves bool) (known bool) {
	for look := range n {
		second := false
		known = b.Audit([]string{"web"}, func(listeners []string) (map[string]Balance, error) {
			all := map[string]Balance{}
			for _, name := range listeners {
				b.reads++
				all[name] = says(look)
				if second && moves {
					all[name] = Balance{Established: all[name].Established + 1}
				}
			}
			second = true
			return all, nil
		})
	}
	return known
}

// off is a book that is off by so many flows.
func off(by int) func(int) Balance {
	return func(int) Balance { return Balance{Established: 100, Queued: 1, Accepted: uint64(99 - by)} }
}

func (b *books) want(what string, known, want bool, state FindingState) {
	b.t.Helper()
	if f := b.conserved(); known != want || f.State != state {
		b.t.Errorf("%s: known %t, want %t; %+v, want %s", what, known, want, f, state)
	}
}

// Books that agree at five still moments in a row are right, and are read no more.
func TestBooksAgree(t *testing.T) {
	b := openBooks(t)
	b.want("four moments", b.audit(4, off(0), false), false, Unjudged)
	b.want("the fifth", b.audit(1, off(0), false), false, Held)
	b.want("a look that finds nothing open", b.audit(1, off(0), false), true, Held)
	if got, want := b.conserved().Words, "100 flows established, 0 queued, 100 accepted; the books of 1 of 1 listeners agreed to the flow"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if b.reads != 10 {
		t.Errorf("its books were read %d times, want 10", b.reads)
	}
	b = openBooks(t)
	b.audit(4, off(0), false)
	b.audit(1, off(1), false)
	b.want("a break", b.audit(4, off(0), false), false, Unjudged)
	b.want("five after it", b.audit(1, off(0), false), false, Held)
}

// Books that are off by the same number most of the time are wrong, by one flow.
func TestBooksAreWrong(t *testing.T) {
	b := openBooks(t)
	b.want("49 moments", b.audit(49, off(1), false), false, Unjudged)
	b.want("one more", b.audit(1, off(1), false), false, Violated)
	b.want("a look that finds nothing open", b.audit(1, off(1), false), true, Violated)
	if got, want := b.conserved().Words, "listener web: of 100 flows that were established 1 are queued and 98 were accepted, as the candidate counts, and so at most of 50 still moments"; got != want {
		t.Errorf("%q, want %q", got, want)
	}

	b = openBooks(t)
	half := func(look int) Balance { return off(look % 2)(look) }
	b.want("off half of the time", b.audit(100, half, false), false, Unjudged)
	b = openBooks(t)
	b.want("off by another number each time", b.audit(100, func(look int) Balance { return off(1 + look%3)(look) }, false), false, Unjudged)
	b = openBooks(t)
	b.want("moving", b.audit(100, off(1), true), false, Unjudged)
}

// Connections that the kernel moved to it have their first mark elsewhere, and no more
// of them than it can have been.
func TestMovedConnectionsAreInTheBooks(t *testing.T) {
	move := func(change func(*Side)) *books {
		b := openBooks(t)
		s := b.own(b.now())
		change(&s)
		b.now().Sides[2] = s
		return b
	}
	queues := func(name string, to, halfOpen uint64) map[string]account.QueueStatus {
		return map[string]account.QueueStatus{name: {Moved: reuseport.Moved{ToAccept: to, HalfOpen: halfOpen}}}
	}
	for name, tt := range map[string]struct {
		change func(*Side)
		want   FindingState
	}{
		"none was":              {func(*Side) {}, Violated},
		"to this listener":      {func(s *Side) { s.Queues, s.Runs[reuseport.Migrated] = queues("web", 1, 0), 1 }, Held},
		"to another":            {func(s *Side) { s.Queues, s.Runs[reuseport.Migrated] = queues("api", 1, 0), 1 }, Violated},
		"a handshake":           {func(s *Side) { s.Queues, s.Runs[reuseport.Migrated] = queues("web", 0, 1), 1 }, Violated},
		"nobody knows to which": {func(s *Side) { s.Queues, s.Runs[reuseport.Migrated] = queues("web", 0, 0), 1 }, Held},
	} {
		b := move(tt.change)
		b.audit(50, off(-1), false)
		if f := b.conserved(); f.State != tt.want {
			t.Errorf("%s: %+v, want %s", name, f, tt.want)
		}
	}
	b := move(func(s *Side) { s.Queues, s.Runs[reuseport.Migrated] = queues("web", 9, 0), 9 })
	if got, want := b.conserved().Words, "100 flows established, 0 queued, 100 accepted; at most 9 were moved to it"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	b.audit(50, off(1), false)
	if f := b.conserved(); f.State != Violated {
		t.Errorf("what was moved there makes up for one that is missing: %+v", f)
	}
}

func TestBooksCannotBeRead(t *testing.T) {
	b := openBooks(t)
	for range 100 {
		if b.Audit([]string{"web"}, func([]string) (map[string]Balance, error) { return nil, errors.New("no") }) {
			t.Fatal("it is known whether they agree")
		}
	}
	b.want("unread", false, false, Unjudged)
	c, _ := two()
	if !c.Audit([]string{"web"}, nil) {
		t.Error("of a candidate without books something is awaited")
	}
}
