package sockops

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/testnet"
)

// BenchmarkRoundTrip sends an octet there and back between two hosts: without the
// programs, with the server's half, with both and no number told, and with the
// number in each of the client's segments.
func BenchmarkRoundTrip(b *testing.B) {
	for _, serve := range []bool{false, true} {
		for _, echo := range []bool{false, true} {
			b.Run(fmt.Sprintf("serve=%v,echo=%v", serve, echo), func(b *testing.B) {
				_, c := benchmarked(b, serve, echo)
				one := make([]byte, 1)
				for b.Loop() {
					c.Write(one)
					if _, err := io.ReadFull(c, one); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkStream is the same for a stream of 64 KiB writes one way.
func BenchmarkStream(b *testing.B) {
	for _, echo := range []bool{false, true} {
		b.Run(fmt.Sprintf("echo=%v", echo), func(b *testing.B) {
			_, c := benchmarked(b, echo, echo)
			go io.Copy(io.Discard, c)
			block := make([]byte, 64<<10)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRun is what one run of each half takes, by the kernel's clock.
func BenchmarkRun(b *testing.B) {
	p, c := benchmarked(b, true, true)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	halves := map[string]*ebpf.Program{"server": p.objs.Server, "client": p.objs.Client}
	before := map[string]*ebpf.ProgramStats{}
	for name, prog := range halves {
		if before[name], err = prog.Stats(); err != nil {
			b.Fatal(err)
		}
	}
	one := make([]byte, 1)
	for b.Loop() {
		c.Write(one)
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
	for name, prog := range halves {
		after, err := prog.Stats()
		if err != nil {
			b.Fatal(err)
		}
		runs := after.RunCount - before[name].RunCount
		b.ReportMetric(float64(after.Runtime-before[name].Runtime)/float64(runs), name+"-ns/run")
		b.ReportMetric(float64(runs)/float64(b.N), name+"-runs/op")
	}
}

// benchmarked is a connection from a host to an echo on another, both in this
// process's cgroup.
func benchmarked(b *testing.B, serve, echo bool) (*Programs, net.Conn) {
	b.Helper()
	hosts := testnet.New(b, "client", "node")
	client, node := hosts[0], hosts[1]
	var p *Programs
	if err := node.Do(func() (err error) { p, err = Open(Options{ServerID: 7}); return err }); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		p.Unpin()
		p.Close()
	})
	_, own := need.Cgroup2(b)
	if serve {
		if err := p.Serve(own); err != nil {
			b.Fatal(err)
		}
	}
	if echo {
		// By a link, which ends: what Echo attaches stays as long as its cgroup does.
		l, err := link.AttachCgroup(link.CgroupOptions{Path: own, Attach: ebpf.AttachCGroupSockOps, Program: p.objs.Client})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
	}
	l := &lab{t: b, node: node, programs: p}
	var marks []func(int) error
	if serve {
		marks = append(marks, l.tell)
	}
	listener := l.listen(node.Addr4, marks...)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			defer c.Close()
			io.Copy(c, c)
		}
	}()
	c, err := client.Dial("tcp", netip.AddrPortFrom(node.Addr4, port))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return p, c
}
