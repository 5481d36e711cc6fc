package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/baton-mesh/baton/bpf/bpffs"
	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/bpf/guard"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/bpf/sockops"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/doctor"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/supervisor/notify"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
	"github.com/baton-mesh/baton/supervisor/store"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// Options say what a supervisor runs. Only Config is needed.
type Options struct {
	// Config is the first generation's configuration, and the supervisor's own.
	Config *config.Config
	// ConfigPath is the file that a release without a file of its own reads.
	// Empty means that such a release runs Config again.
	ConfigPath string
	// Log defaults to one that discards.
	Log *slog.Logger
	// RequestSpans, if set, gets the spans of requests that generations have kept,
	// at most those of one reading at once. It must not block: who cannot take a
	// span counts it and lets it go. Called by several goroutines.
	RequestSpans func([]account.RequestSpan)
	// Version is shown in the status.
	Version string
	// Unsteered leaves new flows to the kernel's hash over all generations that
	// listen: what Baton would be without its programs. For comparison only.
	Unsteered bool
	// Serving, if set, is called once, when the first generation serves.
	Serving func()
	// Reached, if set, is called at each named transition of a release, and of the
	// drain after it: where a test lets the supervisor die. Locks may be held.
	Reached func(transition string)
}

// Supervisor runs generations. Make it with [New]; [Supervisor.Run] does the work.
type Supervisor struct {
	opts     Options
	config   *config.Config
	log      *slog.Logger
	tracer   oteltrace.Tracer
	traces   *trace.Pipeline // what tracer's spans go through
	intakes  trace.Intakes
	store    *store.Store // nil where nothing can be kept
	lock     *os.File
	file     state.File
	notify   *notify.Socket
	steering steer.Steering
	why      string            // this steering and no other; empty: it is the best there is
	pins     string            // this instance's directory in the BPF file system; empty: none
	keys     *keys.Page        // what generations share, so that one's TLS tickets are good for the next
	ids      *idkeys.Keys      // of connection IDs
	certs    chan struct{}     // one token: another configuration serves
	cgroups  *cgroup.Base      // nil where there is no cgroup2
	guard    *guard.Guard      // nil where it cannot be had
	kernel   *account.Kernel   // of flows; nil where it counts none
	option   *sockops.Programs // nil: the configuration wants no option, or it cannot be had
	patience atomic.Int64      // how long a probe may take, in ns

	hurried   chan struct{} // closed when the operator waits no longer
	wake      chan struct{} // one token: there may be work for the release loop
	abandon   chan struct{} // closed when what an earlier supervisor left is left once more
	keeper    *keeper.Warden
	unclaimed map[string]int // what the keeper of an earlier supervisor had and nobody has taken
	work      sync.WaitGroup

	watched   sync.WaitGroup     // who stores the spans that have not ended
	stopWatch context.CancelFunc // ends it; nil: nobody does

	// births is held while a process runs that is not among generations yet:
	// it may already say READY=1.
	births sync.Mutex

	exemplars account.Exemplars

	mu          sync.Mutex
	state       state.Record // as it is in the file
	generations []*generation
	born        *generation // its process is on record and not executed yet
	slots       [reuseport.Slots]*generation
	nextSlot    int
	slotsUsed   int          // slots 0 to slotsUsed-1 have been used
	shift       shiftInForce // of the listeners that have none of their own
	own         split
	borrowed    *loan // by the last release; nil: it was of all listeners
	running     *release
	waiting     *release
	crash       *recipe     // to be started again: the current generation died
	crashes     int         // in a row
	crashed     *generation // the last one that did, until a release tells of it
	lastCrash   crashed
	held        []*generation // dead, with queues that wait for a successor
	pauseOver   bool          // the pause before the next attempt has passed
	reserve     *generation   // kept beside the current one, for want of a verdict on that
	kept        *recipe       // what the generation before the current one ran
	keptOnly    []string      // the listeners that it ran for; nil: all
	keptText    int           // memfd of its configuration, with the keeper; 0: none
	history     []Result
	resumed     map[uint64]oteltrace.Span          // drains that an earlier supervisor began, by generation
	cutOff      map[uint64]oteltrace.SpanContext   // roots of releases that a supervisor's death ended, by release
	traced      *release                           // the last that began
	examples    map[uint64][]oteltrace.SpanContext // of notable requests, by generation
	outcomes    map[Outcome]uint64
	counted     account.Counted   // by generations that have ended
	dropped     map[string]uint64 // segments that their sockets let fall, by listener
	drained     Drained
	stopping    bool
	unsaved     error                 // why the state file does not say what is so; nil: it does
	unusable    map[*generation]error // files of certificates
}

// shiftInForce is what the kernel was last told.
type shiftInForce struct {
	current, other *generation // nil: none
	weight         float64     // other's share of new flows
	salt           uint32
}

// New takes the runtime directory, makes the listeners' groups and sinks, and
// finds what an earlier supervisor has left running. From here on clients can
// connect; they wait for the first generation.
func New(o Options) (_ *Supervisor, err error) {
	s := &Supervisor{
		opts: o, config: o.Config, log: o.Log,
		outcomes: map[Outcome]uint64{}, counted: account.NewCounted(), dropped: map[string]uint64{}, own: split{}, unusable: map[*generation]error{},
		certs:   make(chan struct{}, 1),
		hurried: make(chan struct{}),
		wake:    make(chan struct{}, 1), abandon: make(chan struct{}),
	}
	s.patience.Store(int64(probeTimeout))
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			s.warnOfNumber() // it may be why
			s.close()
		}
	}()
	if err := doctor.Files(s.config); err != nil {
		return nil, err
	}
	mode, why, err := steer.Choose(s.config.Steering, bpffs.Of(instanceName(s.config.RuntimeDir)))
	if err != nil {
		return nil, err
	}
	s.why = why
	dir := s.config.RuntimeDir
	if s.lock, err = state.Lock(dir); err != nil {
		return nil, err
	}
	s.file = state.In(dir)
	if s.state, err = s.file.Load(); err != nil {
		return nil, err
	}
	s.state.ServerID = s.config.Node.ServerID
	if s.state.Clock != (state.Clock{}) {
		s.state.SetTo(state.Now())
	}
	left := s.state.Text()
	if len(s.state.Generations) == 0 { // else a disk that is slow or full must not keep this one from adopting
		if err := s.file.Save(s.state); err != nil {
			return nil, fmt.Errorf("runtime_dir: %w", err)
		}
	}
	if s.notify, err = notify.Listen(filepath.Join(dir, "notify")); err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	if s.cgroups, err = cgroup.MakeBase("baton-" + instanceName(dir)); err != nil {
		s.log.Warn("no cgroups: READY=1 is believed from a generation's main process alone", "reason", err)
	}
	if s.keeper, s.unclaimed, err = keeper.Open(dir, s.keeperLost); err != nil {
		return nil, err
	}
	s.findLeft(s.unclaimed)
	s.goOnWith()
	history := beside(s.openHistory)
	defer func() {
		if err != nil {
			history() // before it is closed
		}
	}()
	if err := s.refuseStrangers(s.config); err != nil {
		return nil, err
	}
	if s.keys, err = keysOf(s.unclaimed); err != nil {
		return nil, err
	}
	s.keeper.Put(map[string]int{keptKeys: s.keys.FD()})
	s.ids = idkeys.New(idkeys.Options{File: s.config.ConnectionIDs.KeyFile, Page: s.keys, Alive: s.livingGenerations, Log: s.log})
	if err := s.openSteerer(mode, !o.Unsteered); err != nil {
		return nil, err
	}
	if err := s.ids.Load(); err != nil {
		if len(s.generations) == 0 {
			return nil, err
		}
		s.log.Error("the keys of connection IDs stay as they were", "error", err)
	}
	if err := history(); err != nil {
		return nil, err
	}
	moved := s.adopt(left)
	if err := s.openAdopted(moved); err != nil {
		return nil, err
	}
	if s.Adopted() || !s.steering.Chooses() {
		s.forgetLeft()
	} // else what clients wait in is closed when somebody can take it, see handOver
	return s, nil
}

// beside begins something at once; the result waits for its end.
func beside(do func() error) func() error {
	ended := make(chan struct{})
	var err error
	go func() { defer close(ended); err = do() }()
	return func() error { <-ended; return err }
}

// Run starts the first generation, unless one was adopted, and then serves requests until ctx ends;
// then it drains and returns. A value on hurry ends the waiting: what is left
// is closed and killed. When Run returns, everything it started has ended. Its
// error says why the first generation did not serve.
func (s *Supervisor) Run(ctx context.Context, hurry <-chan struct{}) error {
	defer s.close()
	s.work.Go(s.hear)

	first := &release{done: closed, result: Result{Outcome: Passed}}
	if !s.Adopted() {
		var err error
		if first, err = s.enqueue("start", Request{}, nil); err != nil {
			return err
		}
	}
	loop, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	var releases sync.WaitGroup
	releases.Go(func() { s.releases(loop) })
	releases.Go(s.warnOfNumber) // now: it looks at all descriptors of others
	releases.Go(func() { s.rotateKeys(loop) })
	releases.Go(func() { s.watchCertificates(loop) })
	releases.Go(func() { s.ids.Watch(loop) })
	releases.Go(func() { s.contain(loop) })
	releases.Go(func() { s.readLedgers(loop) })
	defer releases.Wait()

	select {
	case <-ctx.Done():
	case <-first.done:
		if first.result.Outcome != Passed {
			stop(errStopping)
			s.abandonLeftovers()
			s.shutdown(0, closed)
			return fmt.Errorf("the first generation does not serve: %s", first.result.Reason)
		}
		if s.opts.Serving != nil {
			s.opts.Serving()
		}
		<-ctx.Done()
	}
	s.log.Info("stopping", "lead", s.config.Shutdown.Lead.String())
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	select {
	case <-time.After(s.config.Shutdown.Lead):
	case <-hurry:
		hurry = closed
	}
	stop(errStopping)
	releases.Wait()
	s.shutdown(s.config.Release.DrainTimeout, hurry)
	return nil
}

func (s *Supervisor) reached(transition string) {
	if s.opts.Reached != nil {
		s.opts.Reached(transition)
	}
}

var (
	errStopping = errors.New("the supervisor is stopping")

	closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()
)

// hear takes what generations say.
func (s *Supervisor) hear() {
	for {
		m, err := s.notify.Receive()
		if err != nil {
			if !isClosed(err) {
				s.log.Error("the notify socket failed", "error", err)
			}
			return
		}
		g := s.sender(m)
		if g == nil {
			s.log.Warn("a stranger sent a notification; ignored", "pid", m.PID, "fields", m.Fields)
			continue
		}
		s.heard(g, m.Fields)
	}
}

// sender finds the generation that a message comes from: its main process, or
// any process of its cgroup.
func (s *Supervisor) sender(m notify.Message) *generation {
	s.births.Lock()
	defer s.births.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		if g.process.PID == m.PID || g.cgroup != nil && m.CgroupID != 0 && g.cgroup.Number == m.CgroupID {
			return g
		}
	}
	return nil
}

// applyShift tells the kernel. s.mu is held. With nobody at all the word stays:
// its slots are empty, so new flows wait in the sink.
func (s *Supervisor) applyShift() {
	f := &s.shift
	if f.current == nil {
		f.current, f.other, f.weight = f.other, nil, 0
	}
	if f.current == nil {
		return
	}
	s.steering.Shut(f.addresses()...)
	s.steering.Shift(f.word(), s.words())
}

func newSalt() uint32 { return rand.Uint32() | 1 } // 0 would read as not set

// ReadIDsBy has one more program read encrypted connection IDs.
func (s *Supervisor) ReadIDsBy(table *cidkeys.Table) error { return s.ids.ReadBy(table) }

// livingGenerations are the numbers of those that may have connections.
func (s *Supervisor) livingGenerations() (alive []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.generations {
		alive = append(alive, g.id)
	}
	if s.born != nil {
		alive = append(alive, s.born.id)
	}
	return alive
}
