package xdp

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/tests/scratch"
	"github.com/baton-mesh/baton/tests/testnet"
)

// world is a balancer and the model of it, in a host that has one more interface.
type world struct {
	b   *Balancer
	m   *model
	rnd *rand.Rand

	eth0    int
	octets  map[uint32]uint64 // that the model has counted, by real
	packets map[uint32]uint64
	last    map[string]uint64 // the counters after the last frame. nil: something has changed
}

// Interfaces that there are not: one whose address is known, and one whose is not.
const (
	vanished = 77
	unknown  = 78
)

// newWorld makes both inside the host.
func newWorld(dir string, seed, stream uint64, hostOrder bool) (*world, error) {
	b, err := Open(Options{Dir: dir, RingSize: 251, NewFlowsPerCPU: 1 << 30, UDPIdle: 24 * time.Hour, HostOrder: hostOrder})
	if err != nil {
		return nil, err
	}
	link, err := net.InterfaceByName(testnet.Interface)
	if err != nil {
		return nil, err
	}
	own := [6]byte(link.HardwareAddr)
	keys, err := quicid.NewKeys(map[quicid.Config]quicid.Key{1: key1})
	if err != nil {
		return nil, err
	}
	w := &world{
		b: b, rnd: rand.New(rand.NewPCG(seed, stream)), eth0: link.Index,
		octets: map[uint32]uint64{}, packets: map[uint32]uint64{},
		m: &model{
			hostOrder: hostOrder, keys: keys,
			links:   map[int][6]byte{loopback: ours, link.Index: own, vanished: {2, 0, 0, 0, 0, 7}},
			devices: map[int]bool{link.Index: true},
			vips:    map[VIP]modelVIP{}, servers: map[uint32]uint32{}, reals: map[uint32]modelReal{},
			rings: map[uint32][]uint32{}, flows: map[modelKey]modelFlow{},
		},
	}
	for index, mac := range w.m.links {
		b.sources[index] = source{mac, time.Now().Add(24 * time.Hour)}
	}
	if err := b.objs.Links.Put(uint32(loopback), xdpLink{Ifindex: loopback, Mac: ours}); err != nil {
		return nil, err
	}
	if err := b.Keys().Set(1, key1); err != nil {
		return nil, err
	}
	return w, w.setRoutes(link.Index, own)
}

// The reals' addresses, by what the kernel's routes say of them.
var routed = []struct {
	addr    string
	refused string
	nowhere bool
}{
	{"10.77.0.200", "", false},
	{"fd77::200", "", false},
	{"10.77.0.201", "no_neighbour", false},
	{"fd77::201", "no_neighbour", false},
	{"10.78.0.1", "no_route", false}, // behind a gateway
	{"fd78::1", "no_route", false},
	{"10.79.0.1", "no_route", true}, // refused by a route
	{"198.51.100.9", "no_route", true},
	{"fd79::1", "no_route", true},
}

// setRoutes gives the host its routes, and the model what they say.
func (w *world) setRoutes(eth0 int, own [6]byte) error {
	for _, family := range []string{"ipv4", "ipv6"} {
		if err := os.WriteFile("/proc/sys/net/"+family+"/conf/all/forwarding", []byte("1"), 0); err != nil {
			return err
		}
	}
	mac := [6]byte{2, 0, 0, 0, 2, 1}
	w.m.routes = map[netip.Addr]route{}
	for _, r := range routed {
		w.m.routes[netip.MustParseAddr(r.addr)] = route{refused: r.refused, nowhere: r.nowhere, to: mac, ifindex: eth0}
	}
	neighbour := func(a string) error {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: eth0, State: netlink.NUD_PERMANENT, IP: net.ParseIP(a), HardwareAddr: mac[:]})
	}
	via := func(network, gw string, kind int) error {
		_, to, err := net.ParseCIDR(network)
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: to, Type: kind}
		if gw != "" {
			r.Gw = net.ParseIP(gw)
		}
		return netlink.RouteReplace(r)
	}
	const blackhole, prohibit = 6, 8 // RTN_* of linux/rtnetlink.h
	for _, err := range []error{
		neighbour("10.77.0.200"), neighbour("fd77::200"), neighbour("10.77.0.250"), neighbour("fd77::250"),
		via("10.78.0.0/24", "10.77.0.250", 0), via("fd78::/64", "fd77::250", 0),
		via("10.79.0.0/24", "", blackhole), via("fd79::/64", "", prohibit),
	} {
		if err != nil {
			return fmt.Errorf("routes of the host: %w", err)
		}
	}
	return nil
}

// one is one of several.
func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// change does the same to both sides.
func (w *world) change() error {
	w.last = nil
	switch n := w.rnd.IntN(40); {
	case n < 24:
		return w.changeReal(uint32(1 + w.rnd.IntN(6)))
	case n < 30:
		id, index := one(w.rnd, serverIDs...), uint32(1+w.rnd.IntN(7))
		if w.rnd.IntN(4) == 0 {
			delete(w.m.servers, id)
			return w.b.DeleteServerID(id)
		}
		w.m.servers[id] = index
		return w.b.SetServerID(id, index)
	case n < 37:
		v := one(w.rnd, vipsInUse...)
		if w.rnd.IntN(5) == 0 {
			delete(w.m.vips, v)
			return w.b.DeleteVIP(v)
		}
		return w.setVIP(v, VIPEntry{uint32(w.rnd.IntN(3)), v.UDP && w.rnd.IntN(3) > 0, v.UDP && w.rnd.IntN(2) > 0})
	case n < 38:
		return w.setRing(uint32(w.rnd.IntN(2))) // there is never a third
	}
	return nil
}

var serial int

func (w *world) setVIP(v VIP, to VIPEntry) error {
	e, ok := w.m.vips[v]
	if !ok {
		serial++
		e.serial = serial
	}
	to.KatranIDs = to.KatranIDs && to.QUIC
	e.VIPEntry = to
	w.m.vips[v] = e
	return w.b.SetVIP(v, to)
}

func (w *world) setRing(id uint32) error {
	table := make([]uint32, 251)
	for i := range table {
		table[i] = uint32(w.rnd.IntN(7)) // 0 too, which is nobody
	}
	w.m.rings[id] = table
	return setRing(w.b, id, table)
}

func (w *world) changeReal(index uint32) error {
	old, had := w.m.reals[index]
	if had && w.rnd.IntN(6) == 0 {
		// The next one in the place has another epoch, also with the same address.
		w.m.reals[index] = modelReal{Real{Down: true}, old.epoch + 1}
		return w.b.DeleteReal(index)
	}
	r := Real{
		Addr:  netip.MustParseAddr(one(w.rnd, routed...).addr),
		Down:  w.rnd.IntN(5) == 0,
		Local: w.rnd.IntN(8) == 0, Drained: w.rnd.IntN(4) == 0,
	}
	if w.rnd.IntN(3) > 0 {
		r.MAC, r.Ifindex = [6]byte{2, 0, 0, 0, 1, byte(index)}, one(w.rnd, loopback, loopback, w.eth0, vanished, unknown)
	}
	if had && old.Addr.IsValid() && old.Addr != r.Addr {
		old.epoch++
	}
	w.m.reals[index] = modelReal{r, old.epoch}
	return w.b.SetReal(index, r)
}

// TestRandomPackets runs random frames through the program and through a model of
// it, while reals, VIPs, rings and ids change.
func TestRandomPackets(t *testing.T) {
	n := 8000
	if s := os.Getenv("BATON_TEST_PACKETS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("BATON_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("BATON_TEST_SEED=%d BATON_TEST_PACKETS=%d", seed, n)
	host := testnet.New(t, "balancer")[0]
	for i, hostOrder := range []bool{false, true} {
		dir := scratch.Pins(t)
		if err := host.Do(func() error {
			w, err := newWorld(dir, seed, uint64(i), hostOrder)
			if err != nil {
				return err
			}
			defer w.b.Close()
			return w.run(n/2, t.Logf)
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) run(n int, logf func(string, ...any)) error {
	for index := range uint32(7) {
		if err := w.changeReal(index + 1); err != nil {
			return err
		}
	}
	for _, v := range vipsInUse {
		if err := w.setVIP(v, VIPEntry{0, v.UDP, v.UDP}); err != nil {
			return err
		}
	}
	for ring := range uint32(2) {
		if err := w.setRing(ring); err != nil {
			return err
		}
	}
	for i, id := range serverIDs[:6] {
		w.m.servers[id] = uint32(i%6 + 1)
		if err := w.b.SetServerID(id, uint32(i%6+1)); err != nil {
			return err
		}
	}
	seen := map[string]int{}
	for i := range n {
		if w.rnd.IntN(16) == 0 {
			if err := w.change(); err != nil {
				return fmt.Errorf("change before frame %d: %w", i, err)
			}
		}
		reasons, err := w.frame(w.randomFrame())
		if err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
		for _, reason := range reasons {
			seen[reason]++
		}
		if len(reasons) == 0 {
			seen["(not counted)"]++
		}
	}
	counts, err := w.b.Counted()
	if err != nil {
		return err
	}
	for index, got := range counts.Reals {
		if got.Packets != w.packets[index] || got.Octets != w.octets[index] {
			return fmt.Errorf("real %d: counted %d packets and %d octets, want %d and %d", index, got.Packets, got.Octets, w.packets[index], w.octets[index])
		}
	}
	for _, reason := range reasons {
		if n >= 100000 && seen[reason] == 0 && reason != "unlearned" && reason != "no_forwarding" {
			return fmt.Errorf("of %d frames none was counted as %s", n, reason)
		}
	}
	logf("%v", seen)
	return nil
}

// frame runs a frame through both, and now and then through explain before.
func (w *world) frame(in []byte) ([]string, error) {
	if w.rnd.IntN(4) == 0 {
		if err := w.explained(in); err != nil {
			return nil, err
		}
	}
	before := w.last
	if before == nil {
		var err error
		if before, err = w.tallies(); err != nil {
			return nil, err
		}
	}
	want := w.m.run(in, true)
	verdict, out, err := w.b.objs.Balance.Test(in)
	if err != nil {
		return nil, err
	}
	after, err := w.tallies()
	if err != nil {
		return nil, err
	}
	w.last = after
	var counted []string
	for _, reason := range reasons {
		for range after[reason] - before[reason] {
			counted = append(counted, reason)
		}
	}
	slices.SortFunc(want.reasons, func(a, b string) int { return cmp.Compare(slices.Index(reasons[:], a), slices.Index(reasons[:], b)) })
	if verdict != want.verdict || !slices.Equal(counted, want.reasons) || want.verdict != drop && !bytes.Equal(out[:len(want.out)], want.out) {
		return nil, fmt.Errorf("%x\nverdict %d, counted %v, out %x\nmodel   %d,         %v,     %x\nVIP %v, real %d %+v",
			in, verdict, counted, out[:min(len(out), 64)], want.verdict, want.reasons, want.out[:min(len(want.out), 64)], want.vip, want.real, w.m.reals[want.real])
	}
	if want.octets > 0 {
		w.packets[want.real]++
		w.octets[want.real] += want.octets
	}
	return counted, nil
}

// tallies is all counters of reasons together.
func (w *world) tallies() (map[string]uint64, error) {
	sum := map[string]uint64{}
	add := func(number uint32) error {
		var of []xdpTally
		if err := w.b.objs.Tallies.Lookup(number, &of); err != nil {
			return err
		}
		for _, t := range of {
			for i, n := range t.Packets {
				sum[reasons[i]] += n
			}
		}
		return nil
	}
	if err := add(0); err != nil {
		return nil, err
	}
	for _, e := range w.b.vips {
		if err := add(e.Number); err != nil {
			return nil, err
		}
	}
	return sum, nil
}

// explained has the program say what it would do.
func (w *world) explained(in []byte) error {
	want := w.m.run(in, false)
	if err := w.b.objs.Answers.Put(uint32(0), xdpAnswer{}); err != nil {
		return err
	}
	verdict, _, err := w.b.objs.Explain.Test(in)
	if err != nil {
		return err
	}
	var a xdpAnswer
	if err := w.b.objs.Answers.Lookup(uint32(0), &a); err != nil {
		return err
	}
	var bits uint64
	for _, reason := range want.reasons {
		bits |= 1 << slices.Index(reasons[:], reason)
	}
	if verdict != want.verdict || a.Beside != bits || a.Real != want.real {
		return fmt.Errorf("%x\nexplained as verdict %d, reasons %x, real %d; model: %d, %v (%x), %d", in, verdict, a.Beside, a.Real, want.verdict, want.reasons, bits, want.real)
	}
	return nil
}
