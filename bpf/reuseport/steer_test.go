package reuseport

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

func TestMain(m *testing.M) {
	need.RootForAll("steering is a BPF program")
	os.Exit(m.Run())
}

func TestNewFlowsFollowTheShift(t *testing.T) {
	l := newLab(t, 3, 4)
	l.node.SetShift(All, Shift{Current: 3, Other: 3, Salt: 1})
	l.connect(t, 5)
	l.expect(t, map[int]int{3: 5})
	l.node.SetShift(All, Shift{Current: 4, Other: 3, Salt: 1})
	l.connect(t, 7)
	l.expect(t, map[int]int{4: 7})
	l.counted(t, map[int]Counts{3: {Current: 5}, 4: {Current: 7}})
}

func TestNoShiftWaitsInTheSink(t *testing.T) {
	l := newLab(t, 1)
	l.connect(t, 3)
	l.expect(t, map[int]int{NoSlot: 3})
	l.counted(t, map[int]Counts{NoSlot: {Sink: 3}})
}

func TestEmptySlotFallsToTheOtherThenToTheSink(t *testing.T) {
	l := newLab(t, 1, 2, 9)
	l.node.SetShift(All, Shift{Current: 2, Other: 1, Salt: 1})
	l.node.Empty(2)
	l.connect(t, 4)
	l.expect(t, map[int]int{1: 4})
	l.node.Empty(1)
	l.connect(t, 4)
	// Slot 9 is alive and draining: never its turn.
	l.expect(t, map[int]int{NoSlot: 4})
	l.counted(t, map[int]Counts{1: {Fallback: 4}, NoSlot: {Sink: 4}})
}

func TestProbeReachesTheCandidateAlone(t *testing.T) {
	l := newLab(t, 1, 2)
	l.node.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Control: reuseAddr}
	from := bind(t, loopback).addr // a port that nobody else takes meanwhile
	d.LocalAddr.(*net.TCPAddr).Port = int(from.Port())
	if err := l.node.Steer(from, 2); err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp4", l.sink.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).SetLinger(0)
	l.connect(t, 3)
	l.expect(t, map[int]int{1: 3, 2: 1})
	c.Close()
	if err := l.node.Unsteer(from); err != nil {
		t.Fatal(err)
	}
	if c, err = d.Dial("tcp4", l.sink.addr.String()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.expect(t, map[int]int{1: 1})
	l.counted(t, map[int]Counts{1: {Current: 4}, 2: {Probe: 1}})
}

// A connection is queued, its listener closes: the kernel asks the program.
func TestMigrationGoesToTheCurrentSlotNeverToTheSink(t *testing.T) {
	l := newLab(t, 1, 2)
	l.node.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	conns := l.connect(t, 20)
	l.slots[1].holds(t, 20)
	l.node.SetShift(All, Shift{Current: 2, Other: 1, Salt: 1})
	l.node.Empty(1)
	unix.Close(l.slots[1].fd)
	delete(l.slots, 1)
	l.expect(t, map[int]int{2: 20})
	l.counted(t, map[int]Counts{1: {Current: 20}, 2: {Migrated: 20}})
	at := Place{2, l.group.Number()}
	if moved, err := l.node.Moved(); err != nil || len(moved) != 1 || moved[at] != (Moved{ToAccept: 20}) {
		t.Errorf("moved: %v, %v", moved, err)
	}
	for _, c := range conns {
		c.Close()
	}

	// With nobody left the connection is reset, which the client sees; in the
	// sink it would wait for nobody.
	conns = l.connect(t, 1)
	l.slots[2].holds(t, 1)
	l.node.Empty(2)
	unix.Close(l.slots[2].fd)
	delete(l.slots, 2)
	conns[0].SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := conns[0].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read after nobody could take over: %v, want a reset", err)
	}
	l.expect(t, nil)
}

// What waited for a generation is served by it: the sink closes, its queue moves.
func TestClosingTheSinkHandsItsQueueOn(t *testing.T) {
	l := newLab(t)
	conns := l.connect(t, 20)
	l.sink.holds(t, 20)
	l.fill(t, 7)
	l.node.SetShift(All, Shift{Current: 7, Other: 7, Salt: 1})
	next := bind(t, l.sink.addr).listen(t)
	if err := l.group.SetSink(next.fd); err != nil {
		t.Fatal(err)
	}
	unix.Close(l.sink.fd)
	l.sink = next
	l.expect(t, map[int]int{7: 20})
	l.counted(t, map[int]Counts{7: {Migrated: 20}, NoSlot: {Sink: 20}})
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := c.Read(make([]byte, 1)); err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
			t.Errorf("a connection that waited: %v", err)
		}
	}
}

func TestOneStoreMovesEveryListener(t *testing.T) {
	node, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	labs := []*lab{labOn(t, node, 1, 1, 2), labOn(t, node, 2, 1, 2), labOn(t, node, MaxListeners, 1, 2)}
	node.SetShift(All, Shift{Current: 1, Other: 2, Salt: 1})
	for _, l := range labs {
		l.connect(t, 3)
		l.expect(t, map[int]int{1: 3})
	}
	node.SetShift(All, Shift{Current: 2, Other: 1, Salt: 1})
	for _, l := range labs {
		l.connect(t, 3)
		l.expect(t, map[int]int{2: 3})
	}
	// A listener's own shift overrides the common one, until it is cleared.
	node.SetShift(2, Shift{Current: 1, Other: 1, Salt: 9})
	for i, want := range []int{2, 1, 2} {
		labs[i].connect(t, 3)
		labs[i].expect(t, map[int]int{want: 3})
	}
	node.ClearShift(2)
	labs[1].connect(t, 3)
	labs[1].expect(t, map[int]int{2: 3})
}

// The share of a ramp step, over ten thousand flows, lies within five standard
// deviations of a binomial draw: a right program fails once in two million runs.
func TestWeightsAreDrawnPerFlow(t *testing.T) {
	const flows = 10000
	for _, share := range []float64{0.01, 0.10, 0.50} {
		t.Run(fmt.Sprintf("%g%%", share*100), func(t *testing.T) {
			l := newLab(t, 1, 2)
			weight := uint16(math.Round(share * 65536))
			l.node.SetShift(All, Shift{Current: 1, Other: 2, Weight: weight, Salt: 0x5eed})
			got := 0
			for i := 0; i < flows; i += 500 {
				conns := l.connect(t, 500)
				l.slots[1].queued(t)
				got += l.slots[2].queued(t)
				for _, c := range conns {
					c.Close()
				}
			}
			deviation := math.Sqrt(flows * share * (1 - share))
			if off := math.Abs(float64(got) - flows*share); off > 5*deviation {
				t.Errorf("%d of %d flows went to the candidate, want %.0f ± %.0f", got, flows, flows*share, 5*deviation)
			}
			t.Logf("%d of %d flows at %g %%", got, flows, share*100)
		})
	}
}

func TestWorkers(t *testing.T) {
	for _, choice := range []Choice{ByHash, ByCPU} {
		t.Run(map[Choice]string{ByHash: "hash", ByCPU: "cpu"}[choice], func(t *testing.T) {
			l := newLab(t)
			workers := []listener{bind(t, l.sink.addr).listen(t), bind(t, l.sink.addr).listen(t)}
			if err := l.group.Fill(5, choice, []int{workers[0].fd, workers[1].fd}); err != nil {
				t.Fatal(err)
			}
			l.node.SetShift(All, Shift{Current: 5, Other: 5, Salt: 1})
			if choice == ByCPU {
				// On loopback the packet is received on the CPU that sent it.
				pinned(t, 1, func() { l.connect(t, 40) })
				if got := gather(t, 40, workers...); got[0] != 0 || got[1] != 40 {
					t.Errorf("from CPU 1 worker 0 got %d and worker 1 got %d of 40", got[0], got[1])
				}
				return
			}
			l.connect(t, 200)
			got := gather(t, 200, workers...)
			a, b := got[0], got[1]
			if a+b != 200 || a < 50 || b < 50 {
				t.Errorf("two workers got %d and %d of 200 flows", a, b)
			}
			// A worker that has gone: its neighbour takes its flows.
			unix.Close(workers[0].fd)
			l.connect(t, 40)
			if got := gather(t, 40, workers[1]); got[0] != 40 {
				t.Errorf("the worker that is left got %d of 40", got[0])
			}
			counts, _ := l.node.Counters(5)
			if counts[WorkerMissed] == 0 || counts[Current] != 240 {
				t.Errorf("counters %v, want 240 current and some missed workers", counts)
			}
		})
	}
}

func TestFillRefusesTooMany(t *testing.T) {
	l := newLab(t)
	if err := l.group.Fill(1, ByHash, make([]int, Workers+1)); err == nil {
		t.Error("65 workers were accepted")
	}
	if err := l.group.Fill(1, ByHash, nil); err == nil {
		t.Error("no worker was accepted")
	}
	if _, err := l.node.Group(MaxListeners+1, Address{AddrPort: loopback}); err == nil {
		t.Error("a listener number beyond the map was accepted")
	}
}

func TestCookiesTellWhoIsInASlot(t *testing.T) {
	l := newLab(t, 1)
	want, err := unix.GetsockoptUint64(l.slots[1].fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := l.group.Cookies(1); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("cookies %v, %v; want %d", got, err, want)
	}
	// shutdown by whoever holds the socket takes it out of the slot.
	unix.Shutdown(l.slots[1].fd, unix.SHUT_RD)
	if got, err := l.group.Cookies(1); err != nil || len(got) != 1 || got[0] != 0 {
		t.Errorf("cookies after shutdown %v, %v; want [0]", got, err)
	}
}

func BenchmarkShift(b *testing.B) {
	node, err := Open("")
	if err != nil {
		b.Fatal(err)
	}
	defer node.Close()
	b.Run("store", func(b *testing.B) {
		for b.Loop() {
			node.SetShift(All, Shift{Current: 1, Other: 2, Salt: 1})
		}
	})
	b.Run("fence", func(b *testing.B) {
		for b.Loop() {
			if err := node.Fence(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
