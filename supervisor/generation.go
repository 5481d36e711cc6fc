package supervisor

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/steer"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// dialed counts the probes that were begun, by listener.
type dialed struct {
	mu  sync.Mutex
	all map[string]uint64
}

func (d *dialed) add(listener string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == nil {
		d.all = map[string]uint64{}
	}
	d.all[listener]++
}

func (d *dialed) on(listener string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[listener]
}

// each is how many were begun at every listener.
func (d *dialed) each() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.all)
}

// State is where a generation stands.
type State string

// The states, in the order of a life. A candidate that fails skips some.
const (
	Starting State = "starting" // forked, not ready
	Ready    State = "ready"    // a candidate that said READY=1; probes alone reach it
	Serving  State = "serving"  // new flows go to it, all of them or a share
	Draining State = "draining" // no new flows; it finishes those it has
	Gone     State = "gone"
)

// recipe is what a generation runs: kept with it, so that going back to it is a
// release of the same bytes even when the files have changed.
type recipe struct {
	config     *config.Config
	configPath string // what to call it
	addresses  steer.Addresses
	binary     *spawn.Binary
	account    spawn.Account
}

// again is the same recipe with a handle of its own on the binary.
func (r *recipe) again() (*recipe, error) {
	binary, err := r.binary.Dup()
	if err != nil {
		return nil, err
	}
	next := *r
	next.binary = binary
	return &next, nil
}

// generation is one run of the proxy, or of any server that keeps the contract.
type generation struct {
	// These never change once the generation is among the supervisor's.
	id        uint64
	slot      uint8
	recipe    *recipe // nil for one left by an earlier supervisor
	process   *spawn.Process
	startTime uint64 // of the process, in clock ticks since boot (proc_pid_stat(5))
	started   time.Time
	intake    *trace.Intake // nil for ours, which have their ledger
	cgroup    *cgroup.Group // nil where there is no cgroup2
	book      *account.Book // nil: it keeps no ledger

	ready      chan struct{} // closed at READY=1
	readyOnce  sync.Once
	extend     chan time.Duration // EXTEND_TIMEOUT_USEC while starting
	exited     chan struct{}      // closed when reaped, out of the shift, its sockets closed
	squeezed   chan struct{}      // closed when its drain must end now
	squeezeMe  sync.Once
	socketOnce sync.Once
	removeOnce sync.Once
	dead       atomic.Bool
	sockets    steer.Sockets // our copies, until socketOnce closes them
	datagrams  steer.Sockets // UDP: our copies, until datagramOnce closes them

	datagramOnce sync.Once

	dialed    dialed
	probed    atomic.Uint64 // probes that were answered
	testimony []string      // what the ledger of one that crashed says; complete when exited is closed

	text    int                 // memfd of the configuration, with the keeper; 0: none
	dropped func()              // closes the keeper's copies of the sockets
	adopted bool                // an earlier supervisor started it: it is not our child
	stood   map[string][]uint64 // cookies of the listening sockets of one that was adopted

	flows   *account.Flows  // nil: the kernel counts none
	queues  *account.Queues // nil: it has no listening sockets of ours
	closing func()          // called before our copies of its sockets close

	unfit atomic.Bool // it lives and has given up listening sockets

	// Guarded by Supervisor.mu.
	state        State
	message      string // its STATUS=
	cut          int    // flows the deadline cut, as it reported
	idleClosed   int
	halfOpenLeft int
	ending       *ending // from when it drains on
	deadline     time.Time
	stopping     bool                  // on its way out: its end is no crash
	told         bool                  // to stop, by SIGTERM
	endsIn       oteltrace.SpanContext // the release whose trace has its end
	endTraced    bool                  // somebody records it
	toldAt       time.Time
	signalled    bool // told by this supervisor
	stops        bool // by its own word: it has heard it
	exit         string
	ended        *Ending // nil: it is not forgotten yet
	harmedBefore uint64  // flows of a candidate, before it was given any: probes that failed
}

// listenersOf are the names of the listeners to which clients of a generation connect.
func (g *generation) listenersOf() []string {
	var names []string
	if !g.leftover() {
		for _, l := range g.recipe.config.Listeners {
			if l.Protocol.HasStreams() {
				names = append(names, l.Name)
			}
		}
	}
	return names
}

// socketsOf are its listening sockets on some listeners; nil: on all.
func (g *generation) socketsOf(listeners []string) steer.Sockets {
	if listeners == nil {
		return g.sockets
	}
	some := steer.Sockets{}
	for _, name := range listeners {
		some[name] = g.sockets[name]
	}
	return some
}

// leftover says that an earlier supervisor started it: we hold none of its sockets.
func (g *generation) leftover() bool { return g.recipe == nil }

// alive turns false in the same moment as the generation leaves the shift: who
// holds Supervisor.mu never shifts to a dead one. exited comes later, when its
// sockets have been seen to.
func (g *generation) alive() bool { return !g.dead.Load() }

// closeSockets closes our copies and the keeper's, once: the kernel hands on what
// is queued when the last one closes.
func (g *generation) closeSockets() {
	g.socketOnce.Do(func() {
		if g.closing != nil {
			g.closing()
		}
		if g.dropped != nil {
			g.dropped()
		}
		g.sockets.Close()
	})
	g.closeDatagrams()
}

// closeDatagrams leaves the UDP sockets to the process alone.
func (g *generation) closeDatagrams() { g.datagramOnce.Do(func() { g.datagrams.Close() }) }

// squeeze ends the drain as soon as the generation can be told.
func (g *generation) squeeze() { g.squeezeMe.Do(func() { close(g.squeezed) }) }

// kill ends the generation and every child it made.
func (g *generation) kill() {
	g.process.Signal(syscall.SIGKILL)
	if g.cgroup != nil {
		g.cgroup.Kill()
	}
}

// wait blocks until the process has ended, and says how. It leaves a leftover
// when abandon is closed.
func (g *generation) wait(abandon <-chan struct{}) (exit string, ended bool) {
	for g.leftover() || g.adopted {
		// Not our child: its end shows on the pidfd, its status to nobody.
		if g.process.Ended(100 * time.Millisecond) {
			return "ended (how, only its parent would know)", true
		}
		select {
		case <-abandon:
			if g.leftover() {
				return "", false
			}
			// One that was adopted is ended with our own, and its end waited for.
		default:
		}
	}
	status, err := g.process.Wait()
	switch {
	case err != nil:
		return err.Error(), true
	case status.Signaled():
		return fmt.Sprintf("killed by %s", unix.SignalName(status.Signal())), true
	default:
		return fmt.Sprintf("exit status %d", status.ExitStatus()), true
	}
}

func (g *generation) status() GenerationStatus {
	st := GenerationStatus{
		ID: g.id, Slot: int(g.slot), PID: g.process.PID, State: g.state,
		Started: g.started, Deadline: g.deadline, Message: g.message,
		Cut: g.cut, IdleClosed: g.idleClosed, HalfOpenLeft: g.halfOpenLeft, Exit: g.exit,
		Ledger: g.book.Status(),
	}
	if g.leftover() {
		st.Slot = -1
	} else {
		st.Binary, st.Config = g.recipe.binary.Path, g.recipe.configPath
	}
	return st
}
