package xdp

//go:generate go tool bpf2go -target bpfel -type template -output-suffix _test loop loop_test.c -- -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// What loop_test.c does in one run.
const (
	rounds      = 64
	templateLen = 128
)

// speedCase is a packet to be measured.
type speedCase struct {
	name string
	in   []byte
	want uint32 // verdict
	vary bool   // each packet is of another client
}

// timestamps is what an established Linux flow carries: NOP, NOP, timestamps.
var timestamps = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}

func speedCases() []speedCase {
	elsewhere := netip.MustParseAddr("10.9.0.2")
	return []speedCase{
		{"QUIC by id", frame(vip4, isUDP, 443, short(42)), tx, false},
		{"QUIC by encrypted id", frame(vip4, isUDP, 443, encrypted(42)), tx, false},
		{"TCP by option", frame(vip4, isTCP, 443, tcp(ack, optionOf(42)[2:]...)), tx, false},
		{"TCP by option, other layout", frame(vip4, isTCP, 443, tcp(ack, slices.Concat(timestamps, optionOf(42))...)), tx, false},
		{"TCP by option behind timestamps", frame(vip4, isTCP, 443, tcp(ack, slices.Concat(timestamps, optionOf(42)[2:])...)), tx, false},
		{"the same, begun elsewhere", fromPort(40001, frame(vip4, isTCP, 443, tcp(ack, slices.Concat(timestamps, optionOf(42)[2:])...))), tx, false},
		{"TCP by table", frame(vip4, isTCP, 443, tcp(ack)), tx, false},
		{"TCP by table, timestamps", frame(vip4, isTCP, 443, tcp(ack, timestamps...)), tx, false},
		{"TCP by table, 40 NOPs", frame(vip4, isTCP, 443, tcp(ack, slices.Repeat([]byte{1}, 40)...)), tx, false},
		{"UDP by table", frame(vip4, isUDP, 443, udp([]byte("x"))), tx, false},
		{"new flow", frame(vip4, isTCP, 443, tcp(syn)), tx, true},
		{"IPv6 by option", frame(vip6, isTCP, 443, tcp(ack, optionOf(42)[2:]...)), tx, false},
		{"IPv6 by table", frame(vip6, isTCP, 443, tcp(ack)), tx, false},
		{"another address", frame(elsewhere, isTCP, 443, tcp(ack)), pass, false},
		{"another port of a VIP", frame(vip4, isTCP, 80, tcp(ack)), pass, false},
		{"not IP", slices.Concat(ours[:], router[:], []byte{8, 6}, make([]byte, 46)), pass, false},
	}
}

// fromPort is a frame of another flow of the client.
func fromPort(port uint16, f []byte) []byte {
	f[34], f[35] = byte(port>>8), byte(port)
	return f
}

// looped puts a program into the loop, or leaves the empty one there. It shares
// the balancer's tables. settings are constants of it.
func looped(t *testing.T, b *Balancer, name string, settings map[string]any) *ebpf.Collection {
	t.Helper()
	spec, err := loadLoop()
	if err != nil {
		t.Fatal(err)
	}
	replacements := map[string]*ebpf.Map{}
	if name != "" {
		of := b.spec.Copy()
		loop := spec.Programs["loop"]
		at := slices.IndexFunc(loop.Instructions, func(i asm.Instruction) bool { return i.Symbol() == "measured" })
		if at < 0 {
			t.Fatal("the loop calls nothing")
		}
		body := of.Programs[name].Instructions
		body[0] = body[0].WithSymbol("measured")
		loop.Instructions = append(loop.Instructions[:at:at], body...)
		spec.Variables = of.Variables
		for name, value := range settings {
			if err := spec.Variables[name].Set(value); err != nil {
				t.Fatal(err)
			}
		}
		for name, m := range of.Maps {
			m.Pinning = ebpf.PinNone
			spec.Maps[name] = m
		}
		for _, name := range []string{"links", "fronts", "vips4", "vips6", "reals", "servers", "large_servers", "rings", "flows", "tallies", "real_tallies", "filter", "devices", "guards", "cid_keys"} {
			m, err := ebpf.LoadPinnedMap(b.dir+"/"+name, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			replacements[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		t.Fatalf("%+v", refused)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	return coll
}

// measure is nanoseconds for each packet.
func measure(t *testing.T, coll *ebpf.Collection, c speedCase) float64 {
	t.Helper()
	octets := make([]byte, templateLen)
	copy(octets, c.in)
	template := loopTemplate{}
	for i := range template.Octets {
		template.Octets[i] = le64(octets[i*8:])
	}
	if c.vary {
		template.Vary = 1<<32 - 1
		template.Count = uint32(time.Now().UnixNano()) // clients of earlier rounds do not come again
	}
	if err := coll.Maps["templates"].Put(uint32(0), &template); err != nil {
		t.Fatal(err)
	}
	const repeat = 500
	for {
		verdict, took, err := coll.Programs["loop"].Benchmark(octets, repeat, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := c.want; want != 0 && verdict != want {
			t.Fatalf("%s: verdict %d, want %d", c.name, verdict, want)
		}
		return float64(took.Nanoseconds()) / rounds
	}
}

func le64(b []byte) (x uint64) {
	for i := range 8 {
		x |= uint64(b[i]) << (8 * i)
	}
	return x
}

// stolen is how much time the host has had a CPU do something else, and how much
// there was, in ticks (proc_stat(5)).
func stolen(t *testing.T, cpu int) (lost, all float64) {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == fmt.Sprint("cpu", cpu) {
			for i, n := range f[1:9] { // guests' time is in that of users
				ticks, err := strconv.ParseFloat(n, 64)
				if err != nil {
					t.Fatal(err)
				}
				all += ticks
				if i == 7 {
					lost = ticks
				}
			}
		}
	}
	return lost, all
}

// TestSpeed prints nanoseconds per packet: what the program takes beside the same
// loop around an empty one, in rounds by turns. Nothing is left out. The kernel
// stops the clock where another task takes the CPU, and interrupts, what the host
// takes, and caches that others have filled are in the figures.
func TestSpeed(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("BATON_TEST_SPEED"))
	if err != nil {
		t.Skip("measures: make packets")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cpu := runtime.NumCPU() - 1
	var cpus unix.CPUSet
	cpus.Set(cpu)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		t.Fatal(err)
	}
	b := openWith(t, Options{RingSize: 65537}) // as large as they come: it has to share the caches
	const unbounded = uint32(1 << 30)          // new flows in a second: or the table would learn few of them
	empty := looped(t, b, "", nil)
	programs := []*ebpf.Collection{
		looped(t, b, "balance", map[string]any{"new_flows_per_cpu": unbounded}),
		looped(t, b, "balance", map[string]any{"new_flows_per_cpu": unbounded, "table_first": true}),
		looped(t, b, "balance", map[string]any{"new_flows_per_cpu": uint32(0)}),
	}
	var base []float64
	cases := speedCases()
	taken := make([][][]float64, len(cases))
	for i := range taken {
		taken[i] = make([][]float64, len(programs))
	}
	lost, all := stolen(t, cpu)
	for range n {
		for i, c := range cases {
			base = append(base, measure(t, empty, speedCase{name: c.name, in: c.in, vary: c.vary}))
			for j, p := range programs {
				taken[i][j] = append(taken[i][j], measure(t, p, c))
			}
		}
	}
	lostThen, allThen := stolen(t, cpu)
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("load %.4s, stolen by the host %.1f %%, %d rounds\n", load, 100*(lostThen-lost)/(allThen-all), n)
	at := func(of []float64, share float64) float64 { return of[int(share*float64(len(of)-1)+0.5)] }
	slices.Sort(base)
	fmt.Printf("%-32s %26s %17s %17s\n", "ns per packet", "least, median, nine of ten", "table first", "nothing learned")
	fmt.Printf("%-32s %8.0f %8.0f %8.0f\n", "(the loop around an empty program)", at(base, 0), at(base, .5), at(base, .9))
	for i, c := range cases {
		fmt.Printf("%-32s", c.name)
		for j, t := range taken[i] {
			slices.Sort(t)
			// Least of least: differences of single rounds would make luck of their noise.
			fmt.Printf(" %8.0f %8.0f", at(t, 0)-at(base, 0), at(t, .5)-at(base, .5))
			if j == 0 {
				fmt.Printf(" %8.0f", at(t, .9)-at(base, .9))
			}
		}
		fmt.Println()
	}
}
