package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/balancer/health"
	"github.com/baton-mesh/baton/supervisor/balancer/neighbour"
)

// fakeKernel remembers, and refuses what would leave a name without what it names.
type fakeKernel struct {
	mu     sync.Mutex
	reals  map[uint32]Real
	ids    map[uint32]uint32
	rings  map[uint32][]uint32
	vips   map[VIP]VIPEntry
	broken func() bool    // whether the next write fails
	forgot map[uint32]int // how often each index was forgotten
	writes int
	// ringSize is the number of slots.
	ringSize int
	// allowed is the reals that each VIP may have. nil: any.
	allowed map[VIP]map[netip.Addr]bool
	wrong   error // what was found between two writes
}

func newFakeKernel(ringSize int) *fakeKernel {
	return &fakeKernel{
		ringSize: ringSize,
		reals:    map[uint32]Real{}, ids: map[uint32]uint32{}, rings: map[uint32][]uint32{},
		vips: map[VIP]VIPEntry{}, forgot: map[uint32]int{},
	}
}

func (k *fakeKernel) write(f func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken != nil && k.broken() {
		return errors.New("no memory")
	}
	k.writes++
	err := f()
	if k.wrong == nil {
		k.wrong = err
	}
	return err
}

// strangers looks for VIPs that would send packets to a real of another one, after
// a write that may have done so.
func (k *fakeKernel) strangers() error {
	if k.allowed == nil {
		return nil
	}
	for vip, entry := range k.vips {
		for _, place := range k.rings[entry.Ring] {
			if addr := k.reals[place].Addr; place != 0 && !k.allowed[vip][addr] {
				return fmt.Errorf("%v would send to %v, which does not serve it", vip, addr)
			}
		}
	}
	return nil
}

func (k *fakeKernel) Held() (Tables, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := Tables{maps.Clone(k.reals), maps.Clone(k.ids), maps.Clone(k.vips), map[uint32][]Share{}}
	for id := range k.rings {
		t.Rings[id] = []Share{{}} // it knows slots only
	}
	return t, nil
}

func (k *fakeKernel) SetReal(index uint32, r Real) error {
	return k.write(func() error {
		if old, ok := k.reals[index]; ok && old.Addr != r.Addr {
			return fmt.Errorf("place %d is of %v, and was given to %v", index, old.Addr, r.Addr)
		}
		k.reals[index] = r
		return nil
	})
}

func (k *fakeKernel) DeleteReal(index uint32) error {
	return k.write(func() error {
		for id, i := range k.ids {
			if i == index {
				return fmt.Errorf("server_id %d names real %d, which goes", id, index)
			}
		}
		for id, table := range k.rings {
			for _, i := range table {
				if i == index {
					return fmt.Errorf("ring %d names real %d, which goes", id, index)
				}
			}
		}
		delete(k.reals, index)
		k.forgot[index]++
		return nil
	})
}

func (k *fakeKernel) SetServerID(id, index uint32) error {
	return k.write(func() error {
		if _, ok := k.reals[index]; !ok {
			return fmt.Errorf("server_id %d names real %d, which is not there", id, index)
		}
		k.ids[id] = index
		return nil
	})
}

func (k *fakeKernel) DeleteServerID(id uint32) error {
	return k.write(func() error { delete(k.ids, id); return nil })
}

func (k *fakeKernel) SetRings(ids []uint32, fill func(id uint32, table []uint32)) error {
	return k.write(func() error {
		for _, id := range ids {
			table := make([]uint32, k.ringSize)
			fill(id, table)
			for _, i := range table {
				if _, ok := k.reals[i]; !ok && i != 0 {
					return fmt.Errorf("ring %d names real %d, which is not there", id, i)
				}
			}
			k.rings[id] = table
		}
		return k.strangers()
	})
}

func (k *fakeKernel) DeleteRing(ring uint32) error {
	return k.write(func() error {
		for vip, entry := range k.vips {
			if entry.Ring == ring {
				return fmt.Errorf("ring %d of %v goes", ring, vip)
			}
		}
		delete(k.rings, ring)
		return nil
	})
}

func (k *fakeKernel) SetVIP(v VIP, to VIPEntry) error {
	return k.write(func() error {
		if _, ok := k.rings[to.Ring]; !ok {
			return fmt.Errorf("%v gets ring %d, which is not there", v, to.Ring)
		}
		k.vips[v] = to
		return k.strangers()
	})
}

func (k *fakeKernel) DeleteVIP(v VIP) error {
	return k.write(func() error { delete(k.vips, v); return nil })
}

func (k *fakeKernel) Explain([]byte) (Explanation, error) {
	return Explanation{}, errors.New("it runs no program")
}

func (k *fakeKernel) Counted() (Counts, error) { return Counts{}, nil }

// fakeHanger attaches to anything.
type fakeHanger struct{}

func (fakeHanger) Attach(string, int, bool) error { return nil }
func (fakeHanger) Detach(string) error            { return nil }
func (fakeHanger) Hanging() ([]string, error)     { return nil, nil }

// world is what a balancer sees of the reals: tests say what checks find, and
// where reals are.
type world struct {
	t       *testing.T
	kernel  *fakeKernel
	mirror  *mirror          // nil: the kernel is not a real one
	conf    *config.Balancer // what the next reload reads
	dead    map[netip.Addr]bool
	lost    map[netip.Addr]bool // on no link
	size    int
	b       *Balancer
	stop    func()
	mu      sync.Mutex
	reports map[netip.Addr]func(error)
}

var errDead = errors.New("connection refused")

func newWorld(t *testing.T, conf *config.Balancer, size int) *world {
	return &world{
		t: t, kernel: newFakeKernel(size), conf: conf, size: size,
		dead: map[netip.Addr]bool{}, lost: map[netip.Addr]bool{}, reports: map[netip.Addr]func(error){},
	}
}

// start runs a balancer, on what the one before has left in the kernel. It is to
// be called in a bubble of synctest.
func (w *world) start() {
	w.t.Helper()
	b, err := New(Options{
		Config: w.conf, Load: func() (*config.Balancer, error) { return w.conf, nil },
		Kernel: w.tables(), Hang: fakeHanger{}, RingSize: w.size,
		outside: outside{
			follow: func(ctx context.Context, _ *Balancer) error { <-ctx.Done(); return nil },
			watch:  func(ctx context.Context, _ *Balancer) { <-ctx.Done() },
			check: func(ctx context.Context, target health.Target, report func(error)) {
				w.mu.Lock()
				w.reports[target.Addr.Addr()] = report
				w.mu.Unlock()
				<-ctx.Done()
			},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	w.b, w.stop = b, func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	}
	w.settle()
	w.round(1)
}

func (w *world) tables() Kernel {
	if w.mirror != nil {
		return w.mirror
	}
	return w.kernel
}

// settle waits until everything that was begun has had its effect.
func (w *world) settle() { synctest.Wait() }

// round has every real checked so many times, and looked for on the link.
func (w *world) round(times int) {
	w.settle() // checks that have just begun
	for _, c := range w.conf.Reals {
		addr := c.Addr()
		w.b.post(func() { w.b.hopChanged(addr, w.hop(addr)) })
		w.mu.Lock()
		report := w.reports[addr]
		w.mu.Unlock()
		for range times {
			if report == nil {
				continue
			}
			if w.dead[addr] {
				report(errDead)
			} else {
				report(nil)
			}
		}
	}
	w.settle()
}

// hop is the way to a real: everyone has a MAC address of its own.
func (w *world) hop(addr netip.Addr) neighbour.Hop {
	if w.lost[addr] {
		return neighbour.Hop{Problem: "no route"}
	}
	raw := addr.As16()
	return neighbour.Hop{Ifindex: 7, MAC: [6]byte(raw[10:])}
}
