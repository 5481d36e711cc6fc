package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/keeper"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// warden is the supervisor's side of its keeper: what has to outlive it is put
// there when it is made, and dropped before it is closed. A keeper that has ended
// is replaced, and given everything anew.
type warden struct {
	path string
	lost func(error) // told of a keeper that cannot be had

	mu     sync.Mutex
	client *keeper.Client // nil: there is none
	held   map[string]int // our descriptors of what it has
	closed bool
	stop   chan struct{}
	watch  sync.WaitGroup
}

// KeeperSocket is where the keeper of a runtime directory answers.
func KeeperSocket(runtimeDir string) string { return filepath.Join(runtimeDir, "keeper.sock") }

// openKeeper finds the keeper of an earlier supervisor, and what it holds, or
// starts one. The descriptors of left are the caller's. It refuses a keeper of
// another protocol, which has what it cannot ask for.
func openKeeper(runtimeDir string, lost func(error)) (k *warden, left map[string]int, err error) {
	k = &warden{path: KeeperSocket(runtimeDir), lost: lost, held: map[string]int{}, stop: make(chan struct{})}
	client, err := keeper.Connect(k.path)
	if err == nil {
		if left, err = client.All(); err != nil {
			err = giveUp(client, err)
			if errors.Is(err, keeper.ErrProtocol) {
				return nil, nil, fmt.Errorf("%s: %w; start the version that it belongs to, or end it, and with it what it holds", k.path, err)
			}
			lost(err)
		}
	}
	if err != nil {
		if client, err = keeper.Start(k.path); err != nil {
			lost(err)
			client = nil // replace tries again
		}
	}
	k.client = client
	k.watch.Go(k.replace)
	return k, left, nil
}

// giveUp leaves a keeper that has not done what it was asked to, for this reason. It
// may be stuck: then it is ended, for copies that nobody can make it close would hold
// back queues.
func giveUp(c *keeper.Client, reason error) error {
	defer c.Close()
	if errors.Is(reason, keeper.ErrProtocol) {
		return reason
	}
	return errors.Join(reason, c.Kill())
}

// replace starts another keeper whenever one has ended.
func (k *warden) replace() {
	for {
		keeper.Watch(k.path, k.stop)
		// The one that is dying may still answer for a moment, and then not.
		for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
			err := k.another()
			if err == nil {
				break
			}
			if pause == time.Second {
				k.lost(err)
			}
			select {
			case <-time.After(pause):
			case <-k.stop:
				return
			}
		}
	}
}

// another starts a keeper and gives it everything. Nobody waits for the start.
func (k *warden) another() error {
	k.mu.Lock()
	if k.client != nil {
		k.client.Close()
		k.client = nil
	}
	closed := k.closed
	k.mu.Unlock()
	if closed {
		return errors.New("the supervisor ends")
	}
	client, err := keeper.Start(k.path)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		client.Quit() // nobody else knows of it
		client.Close()
		return errors.New("the supervisor ends")
	}
	if err := client.Put(k.held); err != nil {
		return giveUp(client, err)
	}
	k.client = client
	k.lost(nil)
	return nil
}

// failed is for a keeper that has not done what it was asked to: replace gives the
// next one everything. k.mu is held.
func (k *warden) failed(reason error) {
	k.lost(giveUp(k.client, reason))
	k.client = nil
}

// put keeps copies of descriptors, which have to stay open until drop.
func (k *warden) put(fds map[string]int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.Copy(k.held, fds)
	if k.client == nil {
		return
	}
	if err := k.client.Put(fds); err != nil {
		k.failed(err)
	}
}

// drop closes the copies of all names that begin with prefix.
func (k *warden) drop(prefix string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name := range k.held {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
			delete(k.held, name)
		}
	}
	if k.client == nil || len(names) == 0 {
		return
	}
	if err := k.client.Drop(names); err != nil {
		k.failed(err)
	}
}

// forget drops what the keeper of an earlier supervisor holds and nobody wants.
func (k *warden) forget(left map[string]int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name, fd := range left {
		unix.Close(fd)
		if _, again := k.held[name]; !again {
			names = append(names, name)
		}
	}
	if k.client == nil {
		return
	}
	if err := k.client.Drop(names); err != nil {
		k.failed(err)
	}
}

// close ends the keeper, or leaves it for the next supervisor.
func (k *warden) close(leave bool) {
	k.mu.Lock()
	k.closed = true
	if k.client != nil {
		if !leave {
			k.client.Quit()
		}
		k.client.Close()
	}
	k.mu.Unlock()
	close(k.stop)
	k.watch.Wait()
}

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
		fds[keptOf(g.id, "ledger")] = g.book.ledger.FD()
	}
	if by, ok := s.steering.(*steer.BPF); ok {
		for name, fd := range by.Tables() { // each time: those of datagrams come with the first that takes any
			fds[keptTable+name] = fd
		}
	}
	s.keeper.put(fds)
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
	s.keeper.drop(keptPrevious)
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
	s.keeper.put(map[string]int{keptPrevious + "binary": s.kept.binary.FD(), keptPrevious + "config": text})
	s.state.Previous, s.state.PreviousOf = recordOf(s.kept), s.keptOnly
}
