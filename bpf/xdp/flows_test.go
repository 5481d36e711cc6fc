package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// sharing is n flows of TCP to the VIP, of one set of the connection table, and that
// set.
func sharing(t *testing.T, b *Balancer, n int) (frames [][]byte, set *xdpFlowSet) {
	t.Helper()
	table, release, err := memory[xdpFlowSet](b.objs.Flows)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release() })
	var of uint64
	for i := uint32(0); len(frames) < n; i++ {
		f := frame(vip4, isTCP, 443, tcp(ack))
		binary.BigEndian.PutUint32(f[14+12:], i)
		at := tagOf(b, f) * table[sets].Tags[0] >> (64 - setsLog)
		if len(frames) == 0 {
			of, set = at, &table[at]
		}
		if at == of {
			frames = append(frames, f)
		}
	}
	return frames, set
}

// Of the flows of one set the longest silent is forgotten for a new one. A packet
// makes its flow young again.
func TestFullSet(t *testing.T) {
	b := open(t)
	flows, set := sharing(t, b, ways+2)
	for i, f := range flows[:ways] {
		expect(t, b, packetCase{fmt.Sprint("flow ", i), f, 1, "ring"})
	}
	for i, f := range flows[:ways] {
		at := slices.Index(set.Tags[:], tagOf(b, f))
		if at < 0 {
			t.Fatalf("flow %d is not in its set: %+v", i, set)
		}
		set.Flows[at].Seen -= uint32(1000 * (ways - i)) // the first has been silent longest
	}
	expect(t, b, packetCase{"the oldest has a packet", flows[0], 1, "table"})
	expect(t, b, packetCase{"one more flow", flows[ways], 1, "ring"})
	for i, f := range flows[:ways+1] {
		if i != 1 { // asked for, it would push another one out
			expect(t, b, packetCase{fmt.Sprint("flow ", i, " of a full set"), f, 1, "table"})
		}
	}
	expect(t, b, packetCase{"the oldest but one", flows[1], 1, "ring"})

	// A process that was killed while it wrote leaves a place that is nobody's.
	at := slices.Index(set.Tags[:], tagOf(b, flows[1]))
	set.Tags[at], set.Flows[at].Seen = beingWritten, 0
	expect(t, b, packetCase{"a flow beside a place of nobody's", flows[ways+1], 1, "ring"})
	expect(t, b, packetCase{"the same", flows[ways+1], 1, "table"})
}

// tagOf is the tag of a TCP frame to the VIP.
func tagOf(b *Balancer, f []byte) uint64 {
	client := netip.AddrFrom4([4]byte(f[14+12:]))
	return flowHash(addrOf(client), binary.LittleEndian.Uint32(f[14+20:])) ^ uint64(b.vips[VIP{vip4, 443, false}].Serial)*0x9e3779b97f4a7c15
}

// CPUs that write one set at the same time give no flow another one's real.
func TestManyCPUsInOneSet(t *testing.T) {
	b := open(t)
	ring := make([]uint32, 251)
	for i := range ring {
		ring[i] = uint32(1 + i%2)
	}
	if err := setRing(b, 3, ring); err != nil {
		t.Fatal(err)
	}
	// Twice as many flows as there is room for: with this seed they have one set.
	const flows, workers, runs, repeat = 16, 4, 8, 200
	one := looped(t, b, "balance", map[string]any{"flow_seed": uint64(0), "new_flows_per_cpu": uint32(1 << 30)})
	in := make([]byte, templateLen)
	copy(in, frame(vip4, isTCP, 443, tcp(ack)))
	template := loopTemplate{Vary: flows - 1}
	for i := range template.Octets {
		template.Octets[i] = le64(in[i*8:])
	}
	if err := one.Maps["templates"].Put(uint32(0), &template); err != nil {
		t.Fatal(err)
	}
	var want [3]uint64
	for port := range flows {
		client := netip.AddrFrom4([4]byte{192, 0, 0, 0})
		want[ring[slot(client, wire(uint16(port)), 443, len(ring))]] += workers * runs * repeat * rounds / flows
	}
	var busy sync.WaitGroup
	for range workers {
		busy.Go(func() {
			for n := 0; n < runs; {
				switch _, _, err := one.Programs["loop"].Benchmark(in, repeat, nil); {
				case err == nil:
					n++
				case !errors.Is(err, unix.EINTR):
					t.Error(err)
					return
				}
			}
		})
	}
	busy.Wait()
	c, err := b.Counted()
	if err != nil {
		t.Fatal(err)
	}
	for real := uint32(1); real <= 2; real++ {
		if got := c.Reals[real].Packets; got != want[real] {
			t.Errorf("real %d gets %d packets, want %d", real, got, want[real])
		}
	}
}
