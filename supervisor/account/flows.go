package account

import (
	"errors"
	"hash/fnv"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// Kernel is what the kernel counts of the flows of every generation. A nil Kernel counts
// nothing: this machine has none to give.
type Kernel struct {
	flows *flows.Flows
	log   *slog.Logger

	mu   sync.Mutex
	gone map[string]flows.Counts // by listener, of generations that have ended
}

// OpenKernel begins to count, or goes on. Of an earlier supervisor's accounts it keeps
// those of generations that are known.
func OpenKernel(pins string, known func(generation uint64) bool, log *slog.Logger) (*Kernel, error) {
	own, err := cgroup.Find()
	if err != nil {
		return nil, err
	}
	f, err := flows.Open(own, pins)
	if err != nil {
		return nil, err
	}
	if err := f.Prune(known); err != nil {
		log.Error("accounts of an earlier supervisor stay", "error", err)
	}
	return &Kernel{flows: f, log: log, gone: map[string]flows.Counts{}}, nil
}

// Close ends the counting.
func (k *Kernel) Close() {
	if k != nil {
		k.flows.Unpin()
		k.flows.Close()
	}
}

// Counts reports whether flows are counted at all.
func (k *Kernel) Counts() bool { return k != nil }

// Gone is what is known of generations that have ended, by listener.
func (k *Kernel) Gone() map[string]flows.Counts {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.gone)
}

// listenerNumber names a listener in the kernel's account. A supervisor that
// adopts finds the same number without having been told.
func listenerNumber(listener string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(listener))
	return h.Sum32()
}

// ErrNoFlows says that nothing is counted for a generation.
var ErrNoFlows = errors.New("this machine counts no flows")

// Flows is the kernel's account of one generation. A nil one counts nothing.
type Flows struct {
	kernel     *Kernel
	generation uint64
	listeners  []string
	partial    bool // it does not begin with the generation
	last       atomic.Pointer[map[string]flows.Counts]
}

// Begin opens the accounts of a generation before its first flow. For one that
// is adopted they are open; those that are not have lost what went before.
func (k *Kernel) Begin(generation uint64, sockets steer.Sockets, adopted bool) *Flows {
	if k == nil {
		return nil
	}
	f := &Flows{kernel: k, generation: generation}
	for name, workers := range sockets {
		f.listeners = append(f.listeners, name)
		number := listenerNumber(name)
		if adopted {
			if _, err := k.flows.Counts(generation, number); err == nil {
				continue // its sockets have their marks too: both are pinned, or neither is
			}
			f.partial = true
			k.log.Warn("the account of a generation begins in its middle", "generation", generation, "listener", name)
		}
		err := k.flows.Account(generation, number)
		for _, sock := range workers {
			if err == nil {
				err = k.flows.Mark(sock.FD, generation, number)
			}
		}
		if err != nil {
			f.partial = true
			k.log.Error("a generation's flows are not counted", "generation", generation, "listener", name, "error", err)
		}
	}
	return f
}

// Read reads the account, by listener.
func (f *Flows) Read() (map[string]flows.Counts, error) {
	if f == nil {
		return nil, ErrNoFlows
	}
	if last := f.last.Load(); last != nil {
		return *last, nil
	}
	all := map[string]flows.Counts{}
	for _, name := range f.listeners {
		c, err := f.kernel.flows.Counts(f.generation, listenerNumber(name))
		if err != nil {
			return nil, err
		}
		all[name] = c
	}
	return all, nil
}

// On reads the account of one listener.
func (f *Flows) On(listener string) (flows.Counts, error) {
	if f == nil {
		return flows.Counts{}, ErrNoFlows
	}
	if last := f.last.Load(); last != nil {
		return (*last)[listener], nil
	}
	return f.kernel.flows.Counts(f.generation, listenerNumber(listener))
}

// Whole reports whether every flow of the generation has been counted.
func (f *Flows) Whole() bool { return f == nil || !f.partial }

// End closes the account of a generation that has gone and returns what was
// last in it. Connections that linger in FIN_WAIT go on uncounted.
func (f *Flows) End() flows.Counts {
	byListener, err := f.Read()
	if err != nil {
		return flows.Counts{}
	}
	f.last.Store(&byListener)
	k := f.kernel
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, c := range byListener {
		before := k.gone[name]
		before.Add(c)
		k.gone[name] = before
		k.flows.Forget(f.generation, listenerNumber(name))
	}
	return Sum(byListener)
}

// Sum is an account over all listeners.
func Sum(byListener map[string]flows.Counts) (all flows.Counts) {
	for _, c := range byListener {
		all.Add(c)
	}
	return all
}

// Facts is an account as the status and the metrics show it; what is zero is left out.
func Facts(c flows.Counts) map[string]uint64 {
	all := map[string]uint64{}
	for f, n := range c {
		if n > 0 {
			all[flows.Fact(f).String()] = n
		}
	}
	return all
}
