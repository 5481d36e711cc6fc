package keeper

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is where the keeper of a runtime directory answers.
func Socket(runtimeDir string) string { return filepath.Join(runtimeDir, "keeper.sock") }

// Warden is the side of who owns what is kept: what has to outlive it is put
// there when it is made, and dropped before it is closed. A keeper that has ended
// is replaced, and given everything anew.
type Warden struct {
	path string
	lost func(error) // told of a keeper that cannot be had

	mu     sync.Mutex
	client *Client        // nil: there is none
	held   map[string]int // our descriptors of what it has
	closed bool
	// managed says that the last one was a service manager's, who starts the next one.
	managed bool
	stop    chan struct{}
	watch   sync.WaitGroup
}

// Open finds the keeper of an earlier supervisor, and what it holds, or
// starts one. The descriptors of left are the caller's. It refuses a keeper of
// another protocol, which has what it cannot ask for.
func Open(runtimeDir string, lost func(error)) (k *Warden, left map[string]int, err error) {
	k = &Warden{path: Socket(runtimeDir), lost: lost, stop: make(chan struct{})}
	client, err := Connect(k.path)
	if err == nil {
		if left, err = client.All(); err != nil {
			err = giveUp(client, err)
			if errors.Is(err, ErrProtocol) {
				return nil, nil, fmt.Errorf("%s: %w; start the version that it belongs to, or end it, and with it what it holds", k.path, err)
			}
			lost(err)
		}
		k.managed = client.managed
	}
	if err != nil {
		if client, err = Start(k.path); err != nil {
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
func giveUp(c *Client, reason error) error {
	defer c.Close()
	if errors.Is(reason, ErrProtocol) {
		return reason
	}
	return errors.Join(reason, c.Kill())
}

// replace starts another keeper whenever one has ended.
func (k *Warden) replace() {
	for {
		Watch(k.path, k.stop)
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
func (k *Warden) another() error {
	k.mu.Lock()
	if k.client != nil {
		k.client.Close()
		k.client = nil
	}
	closed, managed := k.closed, k.managed
	k.mu.Unlock()
	if closed {
		return errEnds
	}
	client, err := k.next(managed)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		if !managed {
			client.Quit() // nobody else knows of it
		}
		client.Close()
		return errEnds
	}
	if err := k.fill(client); err != nil {
		return giveUp(client, err)
	}
	k.client, k.managed = client, client.managed
	k.lost(nil)
	return nil
}

var errEnds = errors.New("the supervisor ends")

// next is the keeper after one that has ended: the service manager's, if it was that one's,
// and comes in time; else one of our own.
func (k *Warden) next(managed bool) (*Client, error) {
	for deadline := time.Now().Add(startTimeout); managed && time.Now().Before(deadline); {
		if client, err := Connect(k.path); err == nil {
			return client, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-k.stop:
			return nil, errEnds
		}
	}
	return Start(k.path)
}

// fill makes a keeper hold what it should, and nothing else: one that a manager has started
// has what the one before had, which may have been told to drop some of it meanwhile.
func (k *Warden) fill(client *Client) error {
	has, err := client.All()
	if err != nil {
		return err
	}
	var drop []string
	for name, fd := range has {
		unix.Close(fd)
		if _, held := k.held[name]; !held {
			drop = append(drop, name)
		}
	}
	return errors.Join(client.Drop(drop), client.Put(k.held))
}

// failed is for a keeper that has not done what it was asked to: replace gives the
// next one everything. k.mu is held.
func (k *Warden) failed(reason error) {
	k.lost(giveUp(k.client, reason))
	k.client = nil
}

// Put keeps copies of descriptors, which have to stay open until Drop.
func (k *Warden) Put(fds map[string]int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = map[string]int{}
	}
	maps.Copy(k.held, fds)
	if k.client == nil {
		return
	}
	if err := k.client.Put(fds); err != nil {
		k.failed(err)
	}
}

// Drop closes the copies of all names that begin with prefix.
func (k *Warden) Drop(prefix string) {
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

// Forget drops what the keeper of an earlier supervisor holds and nobody wants.
func (k *Warden) Forget(left map[string]int) {
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

// Close ends the keeper, or leaves it for the next supervisor.
func (k *Warden) Close(leave bool) {
	k.mu.Lock()
	k.closed = true
	if k.client == nil && k.managed && !leave { // it comes back with what was dropped
		k.client, _ = k.next(true)
	}
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
