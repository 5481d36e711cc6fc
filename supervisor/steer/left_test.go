package steer

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
)

func listens(name, address string) config.Listener {
	return config.Listener{Name: name, Address: address, Protocol: config.HTTP, Workers: 1, WorkerChoice: config.ByHash, Backlog: 1024}
}

// port is free on one address, and the kernel gives it to no client.
func port(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.4:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// pins is a directory that is gone after the test.
func pins(t *testing.T) string {
	t.Helper()
	need.Root(t, "it loads BPF programs")
	return scratch.Pins(t)
}

// reopen is what a supervisor does with the tables of the one before.
func reopen(t *testing.T, pins string, again bool, all ...config.Listener) (*BPF, error) {
	t.Helper()
	return OpenBPF(Options{Listeners: all, ServerID: 7, Keys: idkeys.New(idkeys.Options{Log: slog.New(slog.DiscardHandler)}), Pins: pins, Again: again})
}

// A supervisor that cannot have what an earlier one left leaves it as it is: the pins,
// and the addresses by which generations serve.
func TestFailedAdoptionTakesNothingAway(t *testing.T) {
	dir := pins(t)
	web := listens("web", fmt.Sprintf("127.0.0.4:%d", port(t)))
	far := listens("far", "192.0.2.1:80") // not this machine's any more
	first, err := reopen(t, dir, false, web)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.node.Group(9, addressOf(far, false)); err != nil {
		t.Fatal(err)
	}
	if err := first.release(); err != nil { // as if it were killed
		t.Fatal(err)
	}
	if _, err := reopen(t, dir, true, web, far); err == nil {
		t.Fatal("it listens on another machine's address")
	}
	third, err := reopen(t, dir, true, web)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if n, err := third.node.Number(addressOf(far, false)); n != 9 || err != nil {
		t.Errorf("number %d, %v", n, err)
	}
	if pinned := reuseport.Pinned(filepath.Clean(dir)); pinned != nil {
		t.Error(pinned)
	}
}

// Flows of UDP are remembered for as long as the longest that anybody waits for, also
// where an earlier supervisor knew of less; and QUIC by its IDs.
func TestAdoptedFlowsAreRemembered(t *testing.T) {
	dir := pins(t)
	dgram := listens("dgram", fmt.Sprintf("127.0.0.4:%d", port(t)))
	dgram.Protocol, dgram.IdleTimeout = config.UDP, time.Second
	longer, shorter := dgram, dgram
	longer.IdleTimeout, shorter.IdleTimeout = time.Minute, time.Millisecond
	var s *BPF
	var err error
	for _, l := range []config.Listener{dgram, longer, shorter} {
		if s, err = reopen(t, dir, s != nil, l); err != nil {
			t.Fatal(err)
		}
		got, err := s.at(l, true).group.Remembers()
		if want := max(l.IdleTimeout, map[bool]time.Duration{true: time.Minute}[l.IdleTimeout < time.Second]); got != want || err != nil {
			t.Errorf("with %v: remembered for %v, %v; want %v", l.IdleTimeout, got, err, want)
		}
		if err := s.release(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.node.Unpin(); err != nil {
		t.Error(err)
	}
}

// A shift of its own that an address has left, of whom nobody is alive, is not there
// for who comes to that address later.
func TestShiftOfAnAbandonedAddressIsCleared(t *testing.T) {
	dir := pins(t)
	web, gone := listens("web", fmt.Sprintf("127.0.0.4:%d", port(t))), listens("gone", "127.0.0.5:80")
	first, err := reopen(t, dir, false, web, gone)
	if err != nil {
		t.Fatal(err)
	}
	number := first.at(gone, false).group.Number()
	first.node.SetShift(number, reuseport.Shift{Current: 3, Other: 3, Salt: 1})
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	next, err := reopen(t, dir, true, web)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if _, words := next.InForce(); len(words) != 0 {
		t.Errorf("%+v", words)
	}
	next.Shift(reuseport.Shift{Current: 1, Other: 1, Salt: 1}, nil)
	if word := next.node.Shift(number); word != (reuseport.Shift{}) {
		t.Errorf("the shift of an address that nobody has is %+v", word)
	}
}
