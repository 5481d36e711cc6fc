package reuseport

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkRun measures the program itself, by the kernel's clock, one run a
// connection, with as many listeners beside the one that is connected to.
func BenchmarkRun(b *testing.B) {
	node, err := Open("")
	if err != nil {
		b.Fatal(err)
	}
	defer node.Close()
	t := &testing.T{}
	l := labOn(t, node, 1, 1)
	node.SetShift(All, Shift{Current: 1, Other: 1, Salt: 1})
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	before, err := node.prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := net.Dial("tcp4", l.sink.addr.String())
		if err != nil {
			b.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		l.slots[1].queued(t)
	}
	after, err := node.prog.Stats()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/run")
}
