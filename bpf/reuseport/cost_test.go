package reuseport

import (
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/quicid"
)

// TestDatagramCost measures what the program takes for a datagram, by the kernel's
// clock. BATON_TEST_STEERING is in how many rounds.
func TestDatagramCost(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("BATON_TEST_STEERING"))
	if rounds == 0 {
		t.Skip("measures: make quic")
	}
	quic, plain := newDatagramLab(t, 0, 1, 2), newDatagramLab(t, time.Minute, 1, 2)
	key := quicid.Key{1, 2, 3}
	if err := quic.keys.Set(1, key); err != nil {
		t.Fatal(err)
	}
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: key})
	if err != nil {
		t.Fatal(err)
	}
	named := func(config quicid.Config) func() []byte {
		return func() []byte {
			var id [quicid.Len]byte
			keys.Encode(&id, config, quicid.ID{ServerID: nodeID, Slot: 2}, [quicid.RandomLen]byte(randomID(quicid.RandomLen)))
			return short(id[:])
		}
	}
	first := randomID(8)
	one := quic.client()
	flow := plain.client()
	const datagrams = 20_000
	for _, kind := range []struct {
		name   string
		lab    *datagramLab
		packet func() []byte
		from   func() net.Conn
	}{
		{"readable ID", quic, named(quicid.Readable), nil},
		{"encrypted ID", quic, named(1), nil},
		{"new connection", quic, func() []byte { return initial(randomID(8)) }, nil},
		{"first flight, remembered", quic, func() []byte { return initial(first) }, nil},
		{"nobody's", quic, func() []byte { return short(randomID(quicid.Len)) }, nil},
		{"flow of UDP, remembered", plain, func() []byte { return make([]byte, 60) }, func() net.Conn { return flow }},
	} {
		from := one
		if kind.from != nil {
			from = kind.from()
		}
		var ns []float64
		for range rounds {
			ns = append(ns, kind.lab.cost(from, datagrams, kind.packet))
		}
		slices.Sort(ns)
		t.Logf("%-26s %4.0f ns at least, %4.0f in the median of %d rounds", kind.name, ns[0], ns[len(ns)/2], rounds)
	}
}

// cost is what one run takes, in ns, over so many datagrams.
func (l *datagramLab) cost(from net.Conn, n int, packet func() []byte) float64 {
	l.t.Helper()
	all := make([][]byte, n)
	for i := range all {
		all[i] = packet()
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		l.t.Fatal(err)
	}
	defer stats.Close()
	read := func() *ebpf.ProgramStats {
		s, err := l.node.datagram.Stats()
		if err != nil {
			l.t.Fatal(err)
		}
		return s
	}
	before := read()
	for _, p := range all { // what finds the queue full has been steered all the same
		if _, err := from.Write(p); err != nil {
			l.t.Fatal(err)
		}
	}
	after := read()
	if runs := after.RunCount - before.RunCount; runs < uint64(n) {
		l.t.Fatalf("%d runs for %d datagrams", runs, n)
	}
	return float64(after.Runtime-before.Runtime) / float64(after.RunCount-before.RunCount)
}
