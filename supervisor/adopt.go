package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/spawn"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// This file takes over what a supervisor that died, or gave way, has left. Its
// generations serve on: the programs, the tables and the processes need nobody.
// Who is who stands in the state file; the descriptors come from the keeper, and
// where that died too, from the generations themselves; where new flows go is
// read from the kernel, and from the file only where the kernel knows nothing
// (docs/decisions/015).

// findLeft finds the processes of the generations that an earlier supervisor had,
// and takes what the keeper has for them. What of a generation cannot be found
// makes it a leftover: it serves until one of ours does, and is then told to stop.
func (s *Supervisor) findLeft(left map[string]int) {
	if s.state.Boot != state.BootID() {
		s.state.Generations, s.state.Release, s.state.Previous, s.state.PreviousOf = nil, nil, nil, nil
		s.state.Boot = state.BootID()
	}
	for _, was := range s.state.Generations {
		g, err := openLeftover(was)
		if err != nil {
			continue // it has ended meanwhile
		}
		if s.cgroups != nil {
			if g.cgroup, err = s.cgroups.Adopt(g.id, g.process.PID); err != nil {
				s.log.Warn("the cgroup of a generation that was left", "generation", g.id, "error", err)
			}
		}
		if err := s.regain(g, was, left); err != nil {
			g.told, g.toldAt, g.deadline = was.Told, was.ToldAt, was.Deadline
			s.log.Warn("an earlier supervisor left a generation that cannot be adopted: it will be drained", "generation", g.id, "pid", was.PID, "reason", err)
		}
		s.generations = append(s.generations, g)
	}
	s.passUnknown(left)
	if p := s.state.Previous; p != nil {
		recipe, text, err := recipeFrom(p, keptPrevious, left)
		if err != nil {
			s.log.Warn("what the previous generation ran is lost: there is no rollback to it", "reason", err)
			s.state.Previous, s.state.PreviousOf = nil, nil
			return
		}
		s.kept, s.keptOnly, s.keptText = recipe, s.state.PreviousOf, text
		s.keeper.Put(map[string]int{keptPrevious + "binary": recipe.binary.FD(), keptPrevious + "config": text})
	}
}

// goOnWith makes the listeners of what serves the supervisor's, of a candidate only
// where nobody else does: its release is undone. A file that has other ones by now is
// for a release. Those of other generations are added to the
// tables, and closed unless the shift names them.
func (s *Supervisor) goOnWith() {
	var of *generation
	for _, g := range s.generations {
		undone := s.state.Release != nil && s.state.Release.Candidate == g.id
		if !g.leftover() && g.state == Serving && (of == nil || !undone) {
			of = g
		}
	}
	if of == nil {
		return
	}
	c := *s.config
	c.Listeners = of.recipe.config.Listeners
	if s.config.Steering != config.SteeringBPF {
		c.Proxy.Nonblocking = of.recipe.config.Proxy.Nonblocking // of sockets that may be shared
	}
	s.config = &c
}

// take is a descriptor of the keeper's, which is the caller's from now on.
func take(left map[string]int, name string) (int, error) {
	fd, ok := left[name]
	if !ok {
		return -1, fmt.Errorf("the keeper has no %s", name)
	}
	delete(left, name)
	return fd, nil
}

// recipeFrom is a recipe as it stands in the state file and with the keeper, and
// the memfd of its configuration.
func recipeFrom(r *state.Recipe, prefix string, left map[string]int) (_ *recipe, text int, err error) {
	if text, err = take(left, prefix+"config"); err != nil {
		return nil, -1, err
	}
	c, err := readConfig(text)
	if err != nil {
		unix.Close(text)
		return nil, -1, err
	}
	binary, err := take(left, prefix+"binary")
	if err != nil {
		unix.Close(text)
		return nil, -1, err
	}
	return &recipe{config: c, configPath: r.Config, addresses: steer.AddressesOf(c), binary: spawn.From(r.Binary, binary, r.Stamp), account: spawn.Account{UID: r.UID, GID: r.GID}}, text, nil
}

func readConfig(fd int) (*config.Config, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	text := make([]byte, st.Size)
	if _, err := unix.Pread(fd, text, 0); err != nil {
		return nil, err
	}
	return config.Receive("configuration", text)
}

// regain makes a generation that was left one of ours.
func (s *Supervisor) regain(g *generation, was state.Generation, left map[string]int) (err error) {
	if was.Recipe == nil {
		return errors.New("it was a leftover already")
	}
	what, text, err := recipeFrom(was.Recipe, keptOf(g.id, ""), left)
	if err != nil {
		// The keeper died too. The process has its binary and its sockets still.
		s.log.Warn("a generation's configuration is taken to be the file's", "generation", g.id, "reason", err)
		if what, err = s.guessRecipe(g, was.Recipe); err != nil {
			return err
		}
		if text, err = configFD(what.config); err != nil {
			return err
		}
	}
	sockets := steer.Sockets{}
	defer func() {
		if err != nil {
			sockets.Close()
			what.binary.Close()
			unix.Close(text)
		}
	}()
	if !was.Told {
		for listener, cookies := range was.Cookies {
			for w, cookie := range cookies {
				fd, err := take(left, keptSocket(g.id, listener, w))
				if err != nil {
					if fd, err = g.process.Socket(cookie); err != nil {
						return fmt.Errorf("its socket of listener %s: %w", listener, err)
					}
				}
				sock := steer.Socket{FD: fd, Cookie: cookie}
				sockets[listener] = append(sockets[listener], sock)
				if is, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil || is != cookie {
					return fmt.Errorf("its socket of listener %s is another: %v", listener, err)
				}
			}
		}
	}
	if fd, err := take(left, keptOf(g.id, "ledger")); err == nil {
		if g.book, err = account.Adopt(fd, g.id, s.keepSpans); err != nil {
			unix.Close(fd)
			s.log.Warn("the ledger of a generation cannot be read on", "generation", g.id, "error", err)
		}
	}
	g.recipe, g.text, g.sockets, g.adopted, g.stood, g.toldAt = what, text, sockets, true, was.Cookies, was.ToldAt
	g.slot, g.state, g.started, g.deadline, g.told = was.Slot, State(was.State), was.Started, was.Deadline, was.Told
	g.dropped = func() { s.keeper.Drop(keptOf(g.id, "socket/")) }
	if g.state != Starting {
		g.readyOnce.Do(func() { close(g.ready) })
	}
	s.slots[g.slot] = g
	s.slotsUsed = max(s.slotsUsed, int(g.slot)+1)
	s.nextSlot = (int(g.slot) + 1) % reuseport.Slots
	return nil
}

// guessRecipe is what a generation runs when only its process can tell: the binary
// is certain, the configuration is the file's as it is now.
func (s *Supervisor) guessRecipe(g *generation, r *state.Recipe) (*recipe, error) {
	binary, err := spawn.Open(filepath.Join("/proc", strconv.Itoa(g.process.PID), "exe"))
	if err != nil {
		return nil, err
	}
	binary.Path = r.Binary // for people; what runs is what was opened
	return &recipe{config: s.config, configPath: r.Config, addresses: steer.AddressesOf(s.config), binary: binary, account: spawn.Account{UID: r.UID, GID: r.GID}}, nil
}

// forgetLeft closes what nobody has taken, here and with the keeper: a listening
// socket of a generation that has ended hands on its queue then.
func (s *Supervisor) forgetLeft() {
	s.keeper.Forget(s.unclaimed)
	s.unclaimed = nil
}

// leftCookies are those of the listening sockets that nobody has taken.
func (s *Supervisor) leftCookies() map[uint64]bool {
	cookies := map[uint64]bool{}
	for name, fd := range s.unclaimed {
		if !strings.Contains(name, "/socket/") {
			continue
		}
		if cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
			cookies[cookie] = true
		}
	}
	return cookies
}

// keysOf goes on with the keys of an earlier supervisor. Its page stays as it is,
// for nobody can write to it any more: generations that have it see no rotation.
func keysOf(left map[string]int) (*keys.Page, error) {
	fd, err := take(left, keptKeys)
	if err != nil {
		return keys.New()
	}
	defer unix.Close(fd)
	r, err := keys.Open(fd)
	if err != nil {
		return keys.New()
	}
	defer r.Close()
	return keys.After(r)
}

// Adopted reports whether a generation of an earlier supervisor serves on.
func (s *Supervisor) Adopted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shift.current != nil
}

// adopt makes the generations that were found those of this supervisor: puts what
// they have with the keeper, reads from the kernel where new flows go, goes on with
// drains, and undoes the release that was under way. It reports whether new flows
// may have moved, since shortly before that supervisor died. left is what its record said.
func (s *Supervisor) adopt(left string) (moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	moved = s.state.Release != nil
	shared, own := s.steering.InForce()
	for _, g := range s.generations {
		if g.leftover() {
			continue
		}
		s.keep(g)
		s.protect(g)
		s.count(g, true)
		// The tables were pinned, or they are fresh and know nobody. One that drains
		// needs none: what waits for it is on its sockets already.
		if g.state != Draining {
			if err := s.steering.Refill(g.slot, g.recipe.config, g.sockets); err != nil {
				s.log.Error("a generation's sockets are in no slot", "generation", g.id, "error", err)
			}
		}
	}
	s.emptyDead()
	s.readShift()
	s.readLoan()
	if r := s.state.Release; r != nil {
		s.undoInterrupted(r)
	}
	s.sortOut()
	for _, g := range s.generations {
		s.log.Info("adopted a generation", "generation", g.id, "pid", g.process.PID, "state", g.state, "leftover", g.leftover())
		s.work.Go(func() { s.watch(g) })
		switch {
		case g.stopping: // dismissed
			s.work.Go(func() { s.reap(g) })
		case g.leftover() && s.shift.current == nil: // it serves until one of ours does
		case g.leftover() && g.deadline.IsZero():
			s.retire(g, s.shift.current.recipe.config.Release.DrainTimeout)
		case g.state == Draining:
			s.retire(g, max(time.Until(g.deadline), time.Second))
		}
	}
	if s.compose(); s.state.Text() != left {
		s.note()
	}
	now, nowOwn := s.steering.InForce()
	return moved || now != shared || !maps.Equal(nowOwn, own)
}

// emptyDead takes the slots of generations that ended while there was no supervisor
// out of the tables, so that QUIC clients of theirs hear that their connections are
// lost. Of a leftover the slot is not known. s.mu is held.
func (s *Supervisor) emptyDead() {
	if !s.steering.Chooses() || slices.ContainsFunc(s.generations, (*generation).leftover) {
		return
	}
	for slot, g := range s.slots {
		if g != nil {
			continue
		}
		s.steering.Empty(uint8(slot))
		s.steering.EmptyDatagrams(uint8(slot))
	}
}

// readShift learns who serves. s.mu is held.
func (s *Supervisor) readShift() {
	serves := func(g *generation) bool { return g != nil && g.alive() && !g.told && g.state != Starting }
	word, own := s.steering.InForce()
	if word.Salt == 0 {
		// Nobody has served yet, the tables are fresh, or sockets are shared: then
		// the file has to say who was to serve.
		for _, g := range s.generations {
			if !g.leftover() && serves(g) && g.state == Serving && (s.state.Current == 0 || g.id == s.state.Current) {
				s.shift = shiftInForce{current: g, salt: newSalt()}
			}
		}
		for name, g := range s.byID(s.state.Own) {
			if serves(g) {
				s.own[name] = shiftInForce{current: g, salt: newSalt()}
			}
		}
		s.settle()
		for _, g := range s.generations { // who was to serve has ended: who served beside it
			if s.shift.current == nil && !g.leftover() && serves(g) && g.state == Serving {
				s.shift = shiftInForce{current: g, salt: newSalt()}
			}
		}
		s.applyShift()
		return
	}
	current, other := s.slots[word.Current], s.slots[word.Other]
	if !serves(current) {
		current = nil
	}
	if !serves(other) || other == current {
		other = nil
	}
	s.shift = shiftInForce{current: current, other: other, weight: float64(word.Weight) / 65536, salt: word.Salt}
	if other == nil {
		s.shift.weight = 0
	}
	s.readOwn(word, own, serves)
	s.applyShift()
}

// keeperLost hears of a keeper that has ended; nil: another has taken its place.
func (s *Supervisor) keeperLost(err error) {
	if err == nil {
		s.log.Warn("the keeper had ended: another one has everything again")
		return
	}
	s.log.Error("no keeper: should this supervisor die, the next one regains less", "error", err)
}
