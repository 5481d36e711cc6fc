// Package flows keeps the kernel's account of each generation: how many flows it
// got, and how they ended, without asking it.
//
// What was measured, on Linux 6.18, and what follows:
//
//   - sockops runs for a finished handshake in the cgroup in which the listening
//     socket was made, whoever accepts. So it belongs to the supervisor's cgroup,
//     as the guard does, and reaches the sockets of every generation.
//   - A storage with BPF_F_CLONE passes from a listening socket to each connection
//     made of it. So a flow has the mark of the socket that it was established
//     on; one that migrates before its handshake is finished has the mark of the
//     socket it went to, one that migrates later keeps the first.
//   - The tracepoints see every reset of the machine; of sockets without a mark
//     nothing is counted.
//
// A flow that TCP Fast Open made is established when its first octets were
// acknowledged, which is after it could be accepted.
package flows

//go:generate go tool bpf2go -target bpfel -type tally -type mark -type account -type fact flows flows.c -- -O2 -g -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/baton-mesh/baton/bpf/internal/built"
	"github.com/baton-mesh/baton/bpf/internal/patient"
)

// Fact is something that is counted of a flow, at most once.
type Fact int

// The facts, in the order of the counters.
const (
	Established     = Fact(flowsFactFACT_ESTABLISHED)      // finished handshakes
	Answered        = Fact(flowsFactFACT_ANSWERED)         // the client has acknowledged octets of an answer
	Closed          = Fact(flowsFactFACT_CLOSED)           // over, with or without a reset
	Unanswered      = Fact(flowsFactFACT_UNANSWERED)       // over without an octet of an answer: it had asked, or this side reset it; not where the client reset it
	Failed          = Fact(flowsFactFACT_FAILED)           // unanswered, reset by its owner, or open when that ended
	ResetQueued     = Fact(flowsFactFACT_RESET_QUEUED)     // reset by this side before anybody had accepted it
	ResetSent       = Fact(flowsFactFACT_RESET_SENT)       // reset by this side, accepted
	ResetUnanswered = Fact(flowsFactFACT_RESET_UNANSWERED) // reset by who had accepted it, before any octet of an answer
	ResetReceived   = Fact(flowsFactFACT_RESET_RECEIVED)   // reset by the client
	OpenAtExit      = Fact(flowsFactFACT_OPEN_AT_EXIT)     // open when the process that had accepted it ended
	Facts           = int(flowsFactFACTS)
)

// String is the fact as it stands in metrics.
func (f Fact) String() string {
	return [...]string{"established", "answered", "closed", "unanswered", "failed", "reset_queued", "reset_sent", "reset_unanswered", "reset_received", "open_at_exit"}[f]
}

// Counts are flows by fact.
type Counts [Facts]uint64

// Add sums two accounts.
func (c *Counts) Add(other Counts) {
	for f, n := range other {
		c[f] += n
	}
}

// Open flows are established and not over.
func (c Counts) Open() uint64 { return c[Established] - min(c[Established], c[Closed]) }

// Flows holds the programs. Its methods may be called from any goroutine.
type Flows struct {
	dir   string // where they are pinned; empty: nowhere
	objs  flowsObjects
	links []link.Link
}

// layout names the pinned maps' version, as in package reuseport.
const layout = "flows-v1"

// Open attaches the programs, sockops to the cgroup whose directory is given,
// beside any that others have attached there. When dir is not empty it is a
// directory of a BPF file system, and everything is pinned below dir/flows-v1:
// accounts and marks of an earlier process go on without a gap, and so do its programs
// where they are of this build and hang where they should.
func Open(cgroup, dir string) (_ *Flows, err error) {
	info, err := os.Stat(cgroup)
	if err != nil {
		return nil, err
	}
	f := new(Flows)
	if dir != "" {
		f.dir = filepath.Join(dir, layout)
		if err := os.MkdirAll(f.dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	hooks := []hook{
		{"cgroup-" + strconv.FormatUint(inode, 10), built.Of(flowsProgFlows, _FlowsBytes), &f.objs.Flows, func(p *ebpf.Program) (link.Link, error) {
			return link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSockOps, Program: p})
		}},
		{"tcp_send_reset", built.Of(flowsProgResetSent, _FlowsBytes), &f.objs.ResetSent, attachTracing},
		{"tcp_receive_reset", built.Of(flowsProgResetReceived, _FlowsBytes), &f.objs.ResetReceived, attachTracing},
	}
	if f.reopen(hooks, inode) == nil {
		return f, nil
	}
	if err := f.load(hooks); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hook is where a program hangs, and how its link is pinned.
type hook struct {
	name    string
	program built.Program
	loaded  **ebpf.Program
	attach  func(*ebpf.Program) (link.Link, error)
}

func attachTracing(p *ebpf.Program) (link.Link, error) {
	return link.AttachTracing(link.TracingOptions{Program: p})
}

// reopen goes on with what an earlier process has attached. An error says that not all
// of it is there, or that another build's hangs in its place, or hung on a cgroup that
// is gone and had the inode of this one; nothing is held then.
func (f *Flows) reopen(hooks []hook, inode uint64) (err error) {
	if f.dir == "" {
		return os.ErrNotExist
	}
	defer func() {
		if err != nil {
			f.Close()
			f.objs, f.links = flowsObjects{}, nil
		}
	}()
	for name, m := range map[string]**ebpf.Map{flowsMapMarks: &f.objs.Marks, flowsMapAccounts: &f.objs.Accounts} {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(f.dir, name), nil); err != nil {
			return err
		}
	}
	for _, h := range hooks {
		if *h.loaded, err = h.program.Open(f.dir, f.objs.Marks, f.objs.Accounts); err != nil {
			return err
		}
		l, err := link.LoadPinnedLink(filepath.Join(f.dir, h.name), nil)
		if err != nil {
			return err
		}
		f.links = append(f.links, l)
		if err := runs(l, *h.loaded, inode); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

// runs says why a link does not run a program, or not on the cgroup with this inode,
// where it is for one.
func runs(l link.Link, p *ebpf.Program, inode uint64) error {
	of, err := l.Info()
	if err != nil {
		return err
	}
	if on := of.Cgroup(); on != nil && on.CgroupId != inode {
		return errors.New("it hangs on another cgroup")
	}
	is, err := p.Info()
	if err != nil {
		return err
	}
	if id, ok := is.ID(); !ok || id != of.Program {
		return errors.New("another program hangs there")
	}
	return nil
}

func (f *Flows) load(hooks []hook) error {
	spec, err := loadFlows()
	if err != nil {
		return err
	}
	var o ebpf.CollectionOptions
	if f.dir != "" {
		o.Maps.PinPath = f.dir
		for _, name := range []string{flowsMapMarks, flowsMapAccounts} {
			spec.Maps[name].Pinning = ebpf.PinByName
		}
	}
	if err := spec.LoadAndAssign(&f.objs, &o); err != nil {
		return fmt.Errorf("load the account of flows: %w", err)
	}
	for _, h := range hooks {
		l, err := h.attach(*h.loaded)
		if err != nil {
			return fmt.Errorf("attach the account of flows to %s: %w", h.name, err)
		}
		f.links = append(f.links, l)
		if f.dir == "" {
			continue
		}
		// Ours first, then theirs goes: no flow is counted twice, none is missed.
		path := filepath.Join(f.dir, h.name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := errors.Join(l.Pin(path), h.program.Pin(f.dir, *h.loaded)); err != nil {
			return fmt.Errorf("pin the account of flows: %w", err)
		}
	}
	return nil
}

// Account opens the account of a generation on a listener, with nothing in it,
// unless it is open already.
func (f *Flows) Account(generation uint64, listener uint32) error {
	zero := make([]flowsTally, ebpf.MustPossibleCPU())
	key := flowsAccount{Generation: generation, Listener: listener}
	err := patient.Update(func() error { return f.objs.Accounts.Update(key, zero, ebpf.UpdateNoExist) })
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("open the account of generation %d: %w", generation, err)
	}
	return nil
}

// Mark makes every flow that is established on this listening socket from now on
// one of the generation. A mark ends with its socket.
func (f *Flows) Mark(fd int, generation uint64, listener uint32) error {
	if err := f.objs.Marks.Put(int32(fd), flowsMark{Generation: generation, Listener: listener}); err != nil {
		return fmt.Errorf("mark a listening socket of generation %d: %w", generation, err)
	}
	return nil
}

// ErrNoAccount says that nobody has opened the account, or that it was closed.
var ErrNoAccount = errors.New("no such account")

// Counts reads an account, summed over CPUs. Counters only rise.
func (f *Flows) Counts(generation uint64, listener uint32) (sum Counts, err error) {
	var perCPU []flowsTally
	err = f.objs.Accounts.Lookup(flowsAccount{Generation: generation, Listener: listener}, &perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = ErrNoAccount
	}
	if err != nil {
		return sum, fmt.Errorf("read the account of generation %d: %w", generation, err)
	}
	for _, t := range perCPU {
		sum.Add(t.Flows)
	}
	return sum, nil
}

// Forget closes an account. Its flows go on, uncounted.
func (f *Flows) Forget(generation uint64, listener uint32) error {
	err := f.objs.Accounts.Delete(flowsAccount{Generation: generation, Listener: listener})
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("close the account of generation %d: %w", generation, err)
	}
	return nil
}

// Prune closes the accounts that an earlier process has left of generations that
// are not to be kept: it may have died before it could.
func (f *Flows) Prune(keep func(generation uint64) bool) error {
	var key flowsAccount
	var perCPU []flowsTally
	var gone []flowsAccount
	all := f.objs.Accounts.Iterate()
	for all.Next(&key, &perCPU) {
		if !keep(key.Generation) {
			gone = append(gone, key)
		}
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("list the accounts that were left: %w", err)
	}
	var errs []error
	for _, key := range gone {
		errs = append(errs, f.Forget(key.Generation, key.Listener))
	}
	return errors.Join(errs...)
}

// Close gives back what this process holds. Without pins the counting ends; with
// them it goes on.
func (f *Flows) Close() error {
	var errs []error
	for _, l := range f.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, f.objs.Close())...)
}

// Unpin removes the pins, those of earlier processes too.
func (f *Flows) Unpin() error {
	if f.dir == "" {
		return nil
	}
	return os.RemoveAll(f.dir)
}
