package balancer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// TestRandomOperations does to a balancer what operators, networks and crashes do,
// in random order. After each operation the kernel's tables are what a model says,
// and every flow whose real still serves is still sent there, by its id or by what
// the connection table remembers. BATON_TEST_OPERATIONS says how many operations,
// BATON_TEST_SEED repeats a run.
func TestRandomOperations(t *testing.T) {
	soakFor(t, 3000, nil)
}

// TestRandomOperationsInTheKernel is the same on the kernel's own tables, which are
// all read back after each operation. BATON_TEST_KERNEL_OPERATIONS says how many;
// so many are done by several balancers side by side, for most of the time is the
// kernel's wait until nobody uses a ring that was replaced.
func TestRandomOperationsInTheKernel(t *testing.T) {
	operations, lanes := 40, 1
	if s := os.Getenv("BATON_TEST_KERNEL_OPERATIONS"); s != "" {
		operations, _ = strconv.Atoi(s)
		lanes = 12
	}
	for lane := range lanes {
		t.Run(strconv.Itoa(lane), func(t *testing.T) {
			t.Parallel()
			soakFor(t, (operations+lanes-1)/lanes, newMirror(t, soakRing))
		})
	}
}

const soakRing = 251

func soakFor(t *testing.T, operations int, m *mirror) {
	seed := rand.Uint64()
	if s := os.Getenv("BATON_TEST_OPERATIONS"); s != "" && m == nil {
		operations, _ = strconv.Atoi(s)
	}
	if s := os.Getenv("BATON_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("seed %d, %d operations", seed, operations)
	synctest.Test(t, func(t *testing.T) {
		s := newSoak(t, seed, m)
		defer func() { s.w.stop() }()
		for n := range operations {
			did := s.operation()
			if err := s.m.disagrees(); err != nil {
				t.Fatalf("seed %d, operation %d, %s: %v", seed, n, did, err)
			}
			if m != nil {
				if err := m.disagrees(); err != nil {
					t.Fatalf("seed %d, operation %d, %s: %v", seed, n, did, err)
				}
			}
			if err := s.flowsArrive(); err != nil {
				t.Fatalf("seed %d, operation %d, %s: %v", seed, n, did, err)
			}
		}
		t.Logf("operations: %v; flows: %d begun, %d ended with their real, %d in the end", s.counts, s.begun, s.lost, len(s.flows))
	})
}

type soak struct {
	t      *testing.T
	rng    *rand.Rand
	w      *world
	m      *model
	flows  []soakFlow
	counts map[string]int
	serial int // of the next real
	begun  int
	lost   int
}

func newSoak(t *testing.T, seed uint64, m *mirror) *soak {
	s := &soak{t: t, rng: rand.New(rand.NewPCG(seed, 1)), counts: map[string]int{}}
	conf := &config.Balancer{
		Interfaces: []string{"eth0"}, XDPMode: config.XDPNative, Forwarding: config.ForwardL2,
		Health: config.Health{TCPPort: 1, Interval: time.Second, Timeout: time.Second, Fall: 3, Rise: 2},
	}
	for range 6 {
		conf.Reals = append(conf.Reals, s.newReal())
	}
	conf.VIPs = []config.VIP{{Address: "10.9.0.1", Port: 443, Protocols: []config.Protocol{config.TCP, config.UDP}, QUIC: true}}
	s.w = newWorld(t, conf, soakRing)
	if s.w.mirror = m; m != nil {
		s.w.kernel = m.fakeKernel
	}
	s.m = &model{w: s.w}
	s.m.reload(conf, false)
	s.w.start()
	s.m.check()
	return s
}

func (s *soak) newReal() config.Real {
	s.serial++
	weight := s.rng.IntN(4)
	r := config.Real{Name: fmt.Sprintf("node-%d", s.serial), Address: fmt.Sprintf("10.2.%d.%d", s.serial/250%250, s.serial%250+1), Weight: &weight}
	if s.rng.IntN(4) > 0 {
		r.ServerID = uint32(s.serial)
	}
	return r
}

// change is a copy of the configuration for the next reload.
func (s *soak) change() *config.Balancer {
	c := *s.m.conf
	c.Reals, c.VIPs = slices.Clone(c.Reals), slices.Clone(c.VIPs)
	s.w.conf = &c
	return &c
}

// reload has the balancer read what was changed, and a new real checked.
func (s *soak) reload(c *config.Balancer) {
	s.allow(c)
	if _, err := s.w.b.Reload(); err != nil {
		s.t.Errorf("reload: %v", err)
	}
	s.m.reload(c, true)
	s.check(1)
}

// allow notes which reals each VIP may have until the next change: those it had,
// and those it gets.
func (s *soak) allow(c *config.Balancer) {
	allowed := map[VIP]map[netip.Addr]bool{}
	for _, conf := range []*config.Balancer{s.m.conf, c} {
		order := byAddress(conf.Reals)
		_, reals := vipsOf(conf)
		for vip, of := range reals {
			if allowed[vip] == nil {
				allowed[vip] = map[netip.Addr]bool{}
			}
			for rank := range of.ranks() {
				allowed[vip][order[rank].Addr()] = true
			}
		}
	}
	s.w.kernel.mu.Lock()
	s.w.kernel.allowed = allowed
	s.w.kernel.mu.Unlock()
}

func (s *soak) check(times int) {
	for range times {
		s.w.round(1)
		s.m.check()
	}
}

func (s *soak) anyReal() (int, config.Real) {
	i := s.rng.IntN(len(s.m.conf.Reals))
	return i, s.m.conf.Reals[i]
}

// operation does one thing and says which.
func (s *soak) operation() string {
	all := []struct {
		name string
		do   func()
	}{
		{"add a real", s.addReal}, {"remove a real", s.removeReal}, {"reweight a real", s.reweigh}, {"give a real another server_id", s.renumber},
		{"drain a real", s.drain}, {"kill a real", s.kill}, {"kill a real", s.kill}, {"check once", func() { s.check(1) }},
		{"check often", func() { s.check(3) }}, {"lose a real's link", s.lose}, {"add a VIP", s.addVIP}, {"remove a VIP", s.removeVIP},
		{"change a VIP", s.changeVIP}, {"restart", s.restart}, {"let time pass", s.sleep}, {"change the slow start", s.slowStart},
		{"refuse a reload", s.refused}, {"fail to write", s.breakKernel}, {"replace a real", s.replace},
	}
	op := all[s.rng.IntN(len(all))]
	s.counts[op.name]++
	op.do()
	return op.name
}

func (s *soak) addReal() {
	c := s.change()
	if len(c.Reals) < 20 {
		c.Reals = slices.Insert(c.Reals, s.rng.IntN(len(c.Reals)+1), s.newReal())
	}
	s.reload(c)
}

func (s *soak) removeReal() {
	c := s.change()
	if i, gone := s.anyReal(); len(c.Reals) > 2 {
		c.Reals = slices.Delete(c.Reals, i, i+1)
		for j := range c.VIPs {
			c.VIPs[j].Reals = slices.DeleteFunc(slices.Clone(c.VIPs[j].Reals), func(n string) bool { return n == gone.Name })
		}
	}
	s.reload(c)
}

// replace takes a real away and brings it back under the same address: it may not
// be taken for the one that was there.
func (s *soak) replace() {
	i, old := s.anyReal()
	if len(s.m.conf.Reals) < 3 {
		return
	}
	s.removeAt(i, old)
	c := s.change()
	c.Reals = append(c.Reals, old)
	s.reload(c)
}

func (s *soak) removeAt(i int, gone config.Real) {
	c := s.change()
	c.Reals = slices.Delete(c.Reals, i, i+1)
	for j := range c.VIPs {
		c.VIPs[j].Reals = slices.DeleteFunc(slices.Clone(c.VIPs[j].Reals), func(n string) bool { return n == gone.Name })
	}
	s.reload(c)
}

func (s *soak) reweigh() {
	c := s.change()
	i, _ := s.anyReal()
	weight := s.rng.IntN(5)
	c.Reals[i].Weight = &weight
	s.reload(c)
}

func (s *soak) renumber() {
	c := s.change()
	i, _ := s.anyReal()
	s.serial++
	c.Reals[i].ServerID = uint32(s.serial)
	s.reload(c)
}

func (s *soak) drain() {
	_, r := s.anyReal()
	undo := s.rng.IntN(2) == 0
	if _, err := s.w.b.Drain(r.Name, undo); err != nil {
		s.t.Errorf("drain: %v", err)
	}
	s.m.reals[r.Addr()].drained = !undo
}

func (s *soak) kill() {
	_, r := s.anyReal()
	s.w.dead[r.Addr()] = !s.w.dead[r.Addr()]
	s.check(1 + s.rng.IntN(4))
}

func (s *soak) lose() {
	_, r := s.anyReal()
	s.w.lost[r.Addr()] = !s.w.lost[r.Addr()]
	s.check(1)
}

func (s *soak) addVIP() {
	c := s.change()
	s.serial++
	v := config.VIP{Address: fmt.Sprintf("10.9.%d.%d", s.serial/250%250, s.serial%250+1), Port: s.rng.IntN(2) * 443, Protocols: []config.Protocol{config.TCP}}
	if s.rng.IntN(2) == 0 {
		v.Protocols, v.QUIC = append(v.Protocols, config.UDP), true
	}
	if len(c.VIPs) < 8 {
		c.VIPs = append(c.VIPs, v)
	}
	s.reload(c)
}

func (s *soak) removeVIP() {
	c := s.change()
	if i := s.rng.IntN(len(c.VIPs)); len(c.VIPs) > 1 {
		c.VIPs = slices.Delete(c.VIPs, i, i+1)
	}
	s.reload(c)
}

func (s *soak) changeVIP() {
	c := s.change()
	v := &c.VIPs[s.rng.IntN(len(c.VIPs))]
	v.Reals = nil
	if s.rng.IntN(4) > 0 {
		for _, r := range c.Reals {
			if s.rng.IntN(2) == 0 {
				v.Reals = append(v.Reals, r.Name)
			}
		}
	}
	s.reload(c)
}

func (s *soak) restart() {
	s.w.stop()
	s.m.restart()
	s.w.start()
	s.m.check()
}

func (s *soak) sleep() {
	time.Sleep(time.Duration(s.rng.Int64N(int64(8 * time.Second))))
	s.w.settle()
}

func (s *soak) slowStart() {
	c := s.change()
	c.Health.SlowStart = time.Duration(s.rng.IntN(3)) * 10 * time.Second
	s.reload(c)
}

func (s *soak) refused() {
	c := s.change()
	c.XDPMode, c.Reals = config.XDPGeneric, c.Reals[:1]
	if _, err := s.w.b.Reload(); !errors.Is(err, ErrRefused) {
		s.t.Errorf("a reload with another xdp_mode: %v", err)
	}
	s.w.conf = s.m.conf
}

// breakKernel has writes fail for a while, in the middle of a change.
func (s *soak) breakKernel() {
	s.w.kernel.mu.Lock()
	often := 1 + s.rng.IntN(3)
	s.w.kernel.broken = func() bool { return s.rng.IntN(often) == 0 }
	s.w.kernel.mu.Unlock()
	c := s.change()
	i, _ := s.anyReal()
	weight := s.rng.IntN(5)
	c.Reals[i].Weight = &weight
	gone := s.rng.IntN(len(c.Reals))
	if len(s.m.conf.VIPs) > 1 {
		c.VIPs = c.VIPs[1:]
	}
	for j := range c.VIPs {
		c.VIPs[j].Reals = nil
	}
	c.Reals = append(slices.Delete(c.Reals, gone, gone+1), s.newReal())
	s.allow(c)
	s.w.b.Reload() // fails, or had nothing to write
	s.m.reload(c, true)
	s.check(1)
	s.w.kernel.mu.Lock()
	s.w.kernel.broken = nil
	s.w.kernel.mu.Unlock()
	time.Sleep(2 * retryAfter)
	s.w.settle()
}
