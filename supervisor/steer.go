package supervisor

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

// steering is the kernel half, as the supervisor uses it.
type steering struct {
	attach bool         // false: the programs are loaded and steer nothing
	mark   func(socket) // called on each listening socket before it listens
	node   *reuseport.Node
	sinks  sync.Map // cookies of the sockets that are sinks

	datagrams *datagrams

	mu         sync.Mutex
	listeners  []*listener // in the order in which they came
	byAddress  map[reuseport.Address]*listener
	numbers    map[uint32]bool // those that are taken
	lastNumber uint32
	ownShifts  map[uint32]bool // numbers that have a shift of their own
	refused    uint64          // by listeners while they were closed; those that are go uncounted

	queuesMu sync.Mutex
	queues   *iter.Queues
}

// listener is one address of the node for as long as a generation has it.
type listener struct {
	name       string
	address    string
	protocol   config.Protocol
	udp        bool
	group      *reuseport.Group
	open       bool   // it has its sink
	lostBefore uint64 // runs that found nobody, before it was closed

	sinkMu sync.Mutex
	conf   config.Listener
	sink   socket
}

// bpffs is where BPF objects are pinned.
const bpffs = "/sys/fs/bpf"

// pinDir returns the directory for this instance's pins, mounting the BPF file
// system where there is none.
func pinDir(instance string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", bpffs, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
			return "", fmt.Errorf("mount the BPF file system on %s: %w", bpffs, err)
		}
	}
	return filepath.Join(bpffs, "baton", instance), nil
}

// openNode opens the tables: again, those of an earlier supervisor, which its
// generations are in, from their pins or from its keeper, or else fresh ones.
func openNode(pins string, again bool, kept map[string]int) (_ *reuseport.Node, fresh bool, err error) {
	if again && pins != "" {
		n, err := reuseport.Reopen(pins)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	if again {
		n, err := reuseport.Regain(pins, kept)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	n, err := reuseport.Open(pins)
	return n, true, err
}

// openSteering makes the groups and sinks of listeners, and, again, of those that
// adopted generations have. The listeners are then closed until it is read who serves;
// but where the tables are fresh, and know nobody yet, clients wait. serverID is in
// whose connection IDs the program of datagrams finds slots, by the keys of ids.
func openSteering(listeners []config.Listener, serverID uint32, ids *idkeys.Keys, pins string, attach, again bool, kept map[string]int, mark func(socket)) (_ *steering, err error) {
	s := &steering{attach: attach, mark: mark, byAddress: map[reuseport.Address]*listener{}}
	var fresh bool
	defer func() {
		switch {
		case err == nil:
		case fresh:
			s.close()
		default: // who serves by the tables goes on, and another supervisor will look for them
			s.release()
		}
	}()
	if s.node, fresh, err = openNode(pins, again, kept); err != nil {
		return nil, err
	}
	if s.numbers, err = s.node.Numbers(); err != nil {
		return nil, err
	}
	s.datagrams = &datagrams{node: s.node, serverID: serverID, at: s.at, ids: ids}
	if s.queues, err = iter.Open(); err != nil {
		return nil, err
	}
	return s, s.addAll(listeners, fresh)
}

// renewSink (docs/decisions/002) puts a fresh socket in the sink's place and closes the old one. The
// kernel then hands what had waited there to the current generation; so does
// a client that came before the first generation was ready get its answer.
func (s *steering) renewSink(l *listener) error {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	first := l.sink.fd < 0
	fresh, err := l.joinGroup(first, s.mark)
	if first && errors.Is(err, unix.EADDRINUSE) {
		// The group exists: an earlier supervisor's generation lives. Its
		// program steers until ours takes its place.
		fresh, err = l.joinGroup(false, s.mark)
	}
	if err != nil {
		return fmt.Errorf("sink of listener %s: %w", l.name, err)
	}
	if l.open {
		err = l.group.SetSink(fresh.fd)
	}
	if err != nil {
		fresh.close()
		return err
	}
	s.sinks.Store(fresh.cookie, nil)
	if !first {
		s.sinks.Delete(l.sink.cookie)
		l.sink.close()
	}
	l.sink = fresh
	return nil
}

// joinGroup makes a listening socket with the program on its group. The first of
// a group gets the program before it listens, so that no packet is ever hashed
// over the members. A later one must not: the kernel takes a socket that has a
// program of its own for another group and answers EADDRINUSE
// (inet_csk_bind_conflict, net/ipv4/inet_connection_sock.c).
func (l *listener) joinGroup(first bool, mark func(socket)) (socket, error) {
	s, err := bind(l.conf, true)
	if err != nil {
		return socket{}, err
	}
	if first {
		err = l.group.Attach(s.fd)
	}
	if err == nil {
		mark(s)
		err = s.listen(l.conf.Backlog)
	}
	if err == nil && !first {
		err = l.group.Attach(s.fd)
	}
	if err != nil {
		s.close()
		return socket{}, err
	}
	return s, nil
}

// detach leaves the groups to the kernel's hash, over the members that listen.
func (s *steering) detach() {
	for _, l := range s.all() {
		l.group.Detach(l.currentSink().fd)
	}
}

func (l *listener) currentSink() socket {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	return l.sink
}

func (l *listener) closeSink() {
	l.sinkMu.Lock()
	defer l.sinkMu.Unlock()
	if l.sink.fd >= 0 {
		l.sink.close()
		l.sink.fd = -1
	}
}

// fill arms a slot: after it a probe or a shift may name it.
func (s *steering) fill(slot uint8, c *config.Config, sockets map[string][]socket) error {
	for _, conf := range c.Listeners {
		if !conf.Protocol.HasStreams() {
			continue
		}
		var fds []int
		for _, sock := range sockets[conf.Name] {
			fds = append(fds, sock.fd)
		}
		l := s.at(conf, false)
		if l == nil {
			return fmt.Errorf("there is no listener %s any more", conf.Name)
		}
		if err := l.group.Fill(slot, choiceOf(conf), fds); err != nil {
			return err
		}
	}
	return nil
}

// empty makes a slot give nothing any more. An error would be of its memory.
func (s *steering) empty(slot uint8) { s.node.Empty(slot) }

// shift is the store that moves new flows: one for each listener with a shift of its
// own, and one for all others. A listener that gets its own has it before the others
// move, and one that loses it goes with them.
func (s *steering) shift(all reuseport.Shift, own map[string]reuseport.Shift) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.ownShifts
	s.ownShifts = map[uint32]bool{}
	for name, word := range own {
		for _, number := range s.numbersOf(name) {
			s.node.SetShift(number, word)
			s.ownShifts[number] = true
		}
	}
	s.node.SetShift(reuseport.All, all)
	for number := range before {
		if !s.ownShifts[number] {
			s.node.ClearShift(number)
		}
	}
}

// numbersOf are a listener's numbers in the tables: of its streams and of its
// datagrams. s.mu is held.
func (s *steering) numbersOf(name string) (all []uint32) {
	for _, l := range s.listeners {
		if l.conf.Name == name {
			all = append(all, l.group.Number())
		}
	}
	return all
}

// inSlot reports how many of the sockets are where they were put. A socket that
// its generation has shut down is not.
func (s *steering) inSlot(g *generation) (in, all int, err error) {
	for _, conf := range g.recipe.config.Listeners {
		workers := g.sockets[conf.Name]
		l := s.at(conf, false)
		if l == nil {
			continue // it has no streams
		}
		cookies, err := l.group.Cookies(g.slot)
		if err != nil {
			return 0, 0, err
		}
		for w, sock := range workers {
			all++
			if w < len(cookies) && cookies[w] == sock.cookie {
				in++
			}
		}
	}
	return in, all, nil
}

// waiting reads what is queued on some listening sockets, in all.
func (s *steering) waiting(sockets map[string][]socket) (QueueLengths, error) {
	found, err := s.queued(sockets)
	if err != nil {
		return QueueLengths{}, err
	}
	return sumQueues(found), nil
}

func sumQueues(found map[uint64]iter.Queue) (sum QueueLengths) {
	for _, q := range found {
		sum.HalfOpen += q.HalfOpen
		sum.ToAccept += q.ToAccept
	}
	return sum
}

// queued reads what is queued on each of some listening sockets, by cookie.
func (s *steering) queued(sockets map[string][]socket) (map[uint64]iter.Queue, error) {
	var cookies []uint64
	for _, workers := range sockets {
		for _, sock := range workers {
			cookies = append(cookies, sock.cookie)
		}
	}
	s.queuesMu.Lock()
	defer s.queuesMu.Unlock()
	return s.queues.Read(cookies)
}

// moved is what a slot got from listening sockets that closed, by listener.
func (s *steering) moved(slot uint8) (map[string]reuseport.Moved, error) {
	all, err := s.node.Moved()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	byName := map[string]reuseport.Moved{}
	for _, l := range s.all() {
		if m, ok := all[reuseport.Place{Slot: slot, Number: l.group.Number()}]; ok {
			byName[l.name] = m
		}
	}
	return byName, nil
}

// emptySinks hands what waits in sinks to the current generation.
func (s *steering) emptySinks() error {
	if !s.attach {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(s.listeners), func(l *listener) bool { return l.udp }) // nothing waits in theirs
	sinks := make(map[string][]socket, len(all))
	for _, l := range all {
		sinks[l.address] = append(sinks[l.address], l.currentSink())
	}
	queued, err := s.queued(sinks)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all {
		if q := queued[l.currentSink().cookie]; q.HalfOpen+q.ToAccept > 0 {
			errs = append(errs, s.renewSink(l))
		}
	}
	return errors.Join(errs...)
}

// runs reads a listener's counters; those that are zero are left out.
func (l *listener) runs() map[string]uint64 {
	counts, err := l.group.Counters()
	if err != nil {
		return nil
	}
	return byReason(counts)
}

// runs reads the counters of the first slots, as many as have ever been used,
// and of none; those that are zero are left out.
func (s *steering) runs(slots int) []SlotRuns {
	var all []SlotRuns
	for slot := range reuseport.Slots + 1 {
		if slot >= slots && slot != reuseport.NoSlot {
			continue
		}
		counts, err := s.node.Counters(slot)
		if err != nil || counts == (reuseport.Counts{}) {
			continue
		}
		runs := SlotRuns{Slot: slot, Reasons: byReason(counts)}
		if slot == reuseport.NoSlot {
			runs.Slot = -1
		}
		all = append(all, runs)
	}
	return all
}

func byReason(counts reuseport.Counts) map[string]uint64 {
	reasons := map[string]uint64{}
	for r, n := range counts {
		if n > 0 {
			reasons[reuseport.Reason(r).String()] = n
		}
	}
	return reasons
}

// known reports whether a listening socket is one of our sinks.
func (s *steering) known(cookie uint64) bool {
	_, ok := s.sinks.Load(cookie)
	return ok
}

func (s *steering) close() error {
	var err error
	if s.node != nil {
		err = s.node.Unpin()
	}
	return errors.Join(err, s.release())
}

// release closes what this process holds.
func (s *steering) release() error {
	var errs []error
	for _, l := range s.all() {
		l.closeSink()
	}
	if s.queues != nil {
		errs = append(errs, s.queues.Close())
	}
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	return errors.Join(errs...)
}

// probeAddress is where a probe connects to reach a listener: its own address,
// or loopback where it listens on all of them.
func probeAddress(l config.Listener) netip.AddrPort {
	addr := l.AddrPort()
	switch {
	case !addr.Addr().IsUnspecified():
		return addr
	case addr.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), addr.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
	}
}

// instanceName names pins and cgroups after a runtime directory. The BPF file
// system allows no dots; the hash keeps /run/a-b and /run/a.b apart.
func instanceName(runtimeDir string) string {
	dir := filepath.Clean(runtimeDir)
	sum := sha256.Sum256([]byte(dir))
	readable := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, strings.Trim(dir, "/"))
	return fmt.Sprintf("%.40s-%x", readable, sum[:4])
}
