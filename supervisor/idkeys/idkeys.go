// Package idkeys puts the keys of encrypted connection IDs in force: those that the
// kernel reads by, and the one that generations write under (docs/decisions/040).
//
// What always holds: nobody writes under a key that the kernel does not have, and the
// kernel keeps a key that was taken out of the file until every generation that can
// have written under it has ended.
package idkeys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/quicid"
	"github.com/baton-mesh/baton/supervisor/certwatch"
)

const (
	// refusedAgain is how soon a file that was refused is read again: where its
	// directory has gone, no watch tells of its return.
	refusedAgain = time.Second
	// watchAgain is the pause after a watch that failed.
	watchAgain = 10 * time.Second
)

// Options say where keys come from and for whom they are.
type Options struct {
	// File has the keys. Empty: there are none, but for those that are found.
	File string
	// Page is what generations write by. Nil for a balancer, where nobody writes.
	Page *keys.Page
	// Alive are the generations that live, by number. Nil where there are none, but
	// elsewhere: keys then go as soon as the file has them no more. It may take a lock that is
	// held where [Keys.Status] is called.
	Alive func() []uint64
	// Log is required.
	Log *slog.Logger
}

// Keys are the keys of one node or balancer. Its methods may be called from any
// goroutine, [Keys.Load] and [Keys.Watch] by one.
type Keys struct {
	opts  Options
	found []uint64 // generations of an earlier supervisor

	mu      sync.Mutex       // never held where Alive is called
	tables  []*cidkeys.Table // of all programs that read
	known   map[quicid.Config]knownKey
	problem error // why the file is not in force as it is
}

// knownKey is a key that the kernel reads by.
type knownKey struct {
	key quicid.Key
	// retiring are the generations that may have connections under a key which is in
	// the file no more. Nil: it is there.
	retiring []uint64
}

// New begins with what generations that live already write under.
func New(o Options) *Keys {
	k := &Keys{opts: o, known: map[quicid.Config]knownKey{}}
	k.found = k.alive()
	if o.Page != nil {
		if left := o.Page.IDs(); left.Config != quicid.Readable {
			k.known[left.Config] = knownKey{left.Key, k.found}
		}
	}
	return k
}

// alive is never nil.
func (k *Keys) alive() []uint64 {
	if k.opts.Alive == nil {
		return []uint64{}
	}
	return append([]uint64{}, k.opts.Alive()...)
}

// ReadBy gives the keys that are known to one more program, and learns those that an
// earlier process has left there: their connections live.
func (k *Keys) ReadBy(table *cidkeys.Table) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	left, err := table.Keys()
	if err != nil {
		return err
	}
	k.tables = append(k.tables, table)
	for config, key := range left {
		switch known, ok := k.known[config]; {
		case ok && known.key == key:
		case !ok && (len(k.found) > 0 || k.opts.Alive == nil):
			k.known[config] = knownKey{key, k.found} // the file decides, when it is read
		default:
			err = errors.Join(err, table.Clear(config))
		}
	}
	for config, known := range k.known {
		if left[config] != known.key {
			err = errors.Join(err, table.Set(config, known.key))
		}
	}
	k.tellReaders()
	return err
}

// Load puts the file in force as it is now, or else says why everything stays as it was.
func (k *Keys) Load() error {
	if k.opts.File == "" {
		return k.apply(config.IDKeys{})
	}
	want, err := config.LoadIDKeys(k.opts.File)
	if err == nil {
		return k.apply(want)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = err
	return err
}

// apply puts keys in force: first the kernel reads by them, then generations write
// under the one that is marked.
func (k *Keys) apply(want config.IDKeys) error {
	if err := k.add(want, k.alive()); err != nil {
		return err
	}
	// Asked only now: whoever is started from here on writes under another key.
	k.retire(want, k.alive())
	return nil
}

func (k *Keys) add(want config.IDKeys, alive []uint64) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { k.problem = err }()
	for _, c := range slices.Sorted(maps.Keys(want.Keys)) {
		known, ok := k.known[c]
		switch {
		case !ok || known.key == want.Keys[c]:
		case k.opts.Alive == nil:
			return fmt.Errorf("%s: config %d has another key than before, and there may be connections under that: give the new key a config that is free, or take the old one out first", k.opts.File, c)
		case len(alive) > 0:
			return fmt.Errorf("%s: config %d has another key than before, and generations %v may have connections under that: give the new key a config that is free", k.opts.File, c, alive)
		}
	}
	for c, key := range want.Keys {
		if known, ok := k.known[c]; !ok || known.key != key {
			for _, table := range k.tables {
				if err := table.Set(c, key); err != nil {
					return err
				}
			}
		}
		k.known[c] = knownKey{key: key}
	}
	k.tell(want.Encode, want.Keys[want.Encode])
	return nil
}

// tellReaders writes to generations what IDs are read by. k.mu is held.
func (k *Keys) tellReaders() {
	if k.opts.Page != nil {
		as := k.opts.Page.IDs()
		k.tell(as.Config, as.Key)
	}
}

// tell writes to generations what IDs are written under, and what they are read by.
// k.mu is held.
func (k *Keys) tell(encode quicid.Config, key quicid.Key) {
	if k.opts.Page == nil {
		return
	}
	now := keys.IDs{Config: encode, Key: key}
	for c, known := range k.known {
		now.Read[c-1] = known.key
	}
	before := k.opts.Page.IDs()
	if before != now {
		k.opts.Page.WriteIDs(now)
	}
	if before.Config != encode || before.Key != key {
		k.opts.Log.Info("connection IDs are written under another config", "config", encode, "before", before.Config)
	}
}

// retire lets go of the keys that are not wanted, once nobody can have a connection
// under them.
func (k *Keys) retire(want config.IDKeys, alive []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, known := range k.known {
		if _, ok := want.Keys[c]; !ok && known.retiring == nil {
			known.retiring = alive
			k.known[c] = known
			k.opts.Log.Info("the key of a config is kept for connections under it", "config", c, "generations", alive)
		}
	}
	k.sweep(alive)
}

// GenerationEnded looks for keys that nobody needs any more.
func (k *Keys) GenerationEnded() {
	alive := k.alive()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweep(alive)
}

// sweep takes keys away that no living generation can have written under. k.mu is held.
func (k *Keys) sweep(alive []uint64) {
	before := len(k.known)
	for c, known := range k.known {
		if known.retiring == nil {
			continue
		}
		known.retiring = slices.DeleteFunc(slices.Clone(known.retiring), func(id uint64) bool { return !slices.Contains(alive, id) })
		if len(known.retiring) > 0 {
			k.known[c] = known
			continue
		}
		for _, table := range k.tables {
			if err := table.Clear(c); err != nil {
				k.opts.Log.Error("a key of connection IDs that nobody needs", "config", c, "error", err)
			}
		}
		delete(k.known, c)
		k.opts.Log.Info("the key of a config is gone: no connection under it is left", "config", c)
	}
	if len(k.known) < before {
		k.tellReaders()
	}
}

// Watch puts the file in force each time that it changes, until ctx ends. What is
// wrong with it is said once, and so is its end.
func (k *Keys) Watch(ctx context.Context) {
	if k.opts.File == "" {
		return
	}
	said := ""
	for ctx.Err() == nil {
		watch, stop := context.WithCancel(ctx)
		var refused error
		err := certwatch.Look(watch, []string{k.opts.File}, func() {
			if refused = k.Load(); refused != nil {
				stop()
				return
			}
			if said != "" {
				k.opts.Log.Info("the file of keys of connection IDs is in force again", "file", k.opts.File)
				said = ""
			}
		})
		stop()
		again := refusedAgain
		if err != nil {
			refused, again = err, watchAgain
		}
		if refused == nil {
			return
		}
		if text := refused.Error(); text != said {
			k.opts.Log.Error("the keys of connection IDs stay as they were", "error", refused)
			said = text
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

// Status is how connection IDs of QUIC are written and read. 0 is the config of
// readable ones, which needs no key.
type Status struct {
	KeyFile  string     `json:"key_file,omitempty"`
	Encode   int        `json:"encode"` // the config that generations write under; of a balancer always 0
	Read     []int      `json:"read"`   // those that there is a key for
	Retiring []Retiring `json:"retiring,omitempty"`
	Problem  string     `json:"problem,omitempty"` // why the file is not in force as it is
}

// Retiring is a key that is out of the file, and kept.
type Retiring struct {
	Config      int      `json:"config"`
	Generations []uint64 `json:"generations"` // that may have connections under it
}

// Status is nil where there is no key, and no file of keys.
func (k *Keys) Status() *Status {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.opts.File == "" && len(k.known) == 0 {
		return nil
	}
	st := &Status{KeyFile: k.opts.File, Read: []int{}}
	if k.opts.Page != nil {
		st.Encode = int(k.opts.Page.IDs().Config)
	}
	for _, c := range slices.Sorted(maps.Keys(k.known)) {
		st.Read = append(st.Read, int(c))
		if retiring := k.known[c].retiring; retiring != nil {
			st.Retiring = append(st.Retiring, Retiring{int(c), retiring})
		}
	}
	if k.problem != nil {
		st.Problem = k.problem.Error()
	}
	return st
}
