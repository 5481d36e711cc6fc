package supervisor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The names of what is kept.

func keptOf(generation uint64, what string) string { return fmt.Sprintf("%d/%s", generation, what) }

func keptSocket(generation uint64, listener string, worker int) string {
	return keptOf(generation, fmt.Sprintf("socket/%s/%d", listener, worker))
}

const (
	keptKeys     = "keys"
	keptPrevious = "previous/" // what a rollback goes back to, after its generation has gone
	keptTable    = "table/"    // of the kernel's; they are pinned as well, where that can be
)

// keptTables are the kernel's tables among what a keeper holds, by name.
func keptTables(left map[string]int) map[string]int {
	tables := map[string]int{}
	for name, fd := range left {
		if table, ok := strings.CutPrefix(name, keptTable); ok {
			tables[table] = fd
		}
	}
	return tables
}

// keptSockets are the first sockets of listeners among what a keeper holds, by listener.
func keptSockets(left map[string]int) map[string][]int {
	sockets := map[string][]int{}
	for name, fd := range left {
		if _, socket, ok := strings.Cut(name, "/socket/"); ok {
			if listener, first := strings.CutSuffix(socket, "/0"); first {
				sockets[listener] = append(sockets[listener], fd)
			}
		}
	}
	return sockets
}

// keep puts what is a generation's with the keeper, before anybody depends on it.
func (s *Supervisor) keep(g *generation) {
	fds := map[string]int{keptOf(g.id, "binary"): g.recipe.binary.FD(), keptOf(g.id, "config"): g.text}
	for name, workers := range g.sockets {
		for w, sock := range workers {
			fds[keptSocket(g.id, name, w)] = sock.FD
		}
	}
	if g.book != nil {
		fds[keptOf(g.id, "ledger")] = g.book.FD()
	}
	for name, fd := range s.steering.Tables() { // each time: those of datagrams come with the first that takes any
		fds[keptTable+name] = fd
	}
	s.keeper.Put(fds)
}

// keepRecipe makes a recipe what a rollback goes back to, for some listeners or,
// with nil, all. s.mu is held.
func (s *Supervisor) keepRecipe(what *recipe, only []string) {
	if s.kept != nil {
		s.kept.binary.Close()
	}
	s.kept, s.keptOnly = what, only
	s.keepPrevious()
}

// keepPrevious makes sure that a rollback finds what it goes back to, though the
// generation has gone. s.mu is held.
func (s *Supervisor) keepPrevious() {
	s.keeper.Drop(keptPrevious)
	if s.keptText > 0 {
		unix.Close(s.keptText)
		s.keptText = 0
	}
	s.state.Previous, s.state.PreviousOf = nil, nil
	if s.kept == nil {
		return
	}
	text, err := configFD(s.kept.config)
	if err != nil {
		s.log.Error("keep the configuration of the previous generation", "error", err)
		return
	}
	s.keptText = text
	s.keeper.Put(map[string]int{keptPrevious + "binary": s.kept.binary.FD(), keptPrevious + "config": text})
	s.state.Previous, s.state.PreviousOf = recordOf(s.kept), s.keptOnly
}
