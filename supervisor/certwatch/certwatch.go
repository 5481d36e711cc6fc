// Package certwatch tells when certificate files have changed.
//
// It watches their directories, not the files: whoever renews a certificate
// writes a new file and renames it, or, as Kubernetes does, swaps a symbolic
// link further up. What counts is what is read in the end, so a file that was
// touched, or replaced by the same again, is no change.
package certwatch

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long nothing may happen before the files are read: a
	// certificate and its key are rarely replaced in one step.
	quiet = 500 * time.Millisecond
	// rescan bounds how late a change is seen that no event told of: one on a
	// network's file system, or in a directory that was replaced itself.
	rescan = time.Minute
)

// Watch calls changed each time that one of the files holds something else than
// at the last call, or at first than files says: their contents, by path. It is
// not called while one cannot be read: readable is then, with the reason, and with nil
// at first or when all can be read again and hold nothing new. Watch returns when ctx
// ends, with nil, or when it cannot watch.
func Watch(ctx context.Context, files map[string]string, changed func(), readable func(error)) error {
	known := make(map[string]sum, len(files))
	for path, contents := range files {
		known[path] = sha256.Sum256([]byte(contents))
	}
	first, gone := true, false
	return Look(ctx, slices.Collect(maps.Keys(files)), func() {
		now, err := sums(known)
		switch {
		case err != nil: // about to be replaced, perhaps; there will be an event
			if !gone {
				readable(err)
			}
		case !maps.Equal(now, known):
			known = now
			changed()
		case first || gone:
			readable(nil)
		}
		first, gone = false, err != nil
	})
}

// Look calls look at once, each time that something has happened to one of the
// files, whether it holds something else then or can be read no more, and now and
// then besides. It returns as [Watch] does.
func Look(ctx context.Context, files []string, look func()) error {
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch certificates: %w", err)
	}
	defer events.Close()
	w := watcher{events: events, files: files, watched: map[string]bool{}}

	next := time.NewTimer(0) // at once: what the caller knows may be old already
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events.Events:
			if !ok {
				return errors.New("watch certificates: the watcher has ended")
			}
			next.Reset(quiet)
		case <-events.Errors:
			// Events were lost, or one directory cannot be watched.
			next.Reset(quiet)
		case <-next.C:
			// Before reading: what changes after the read has an event.
			w.follow()
			look()
			next.Reset(rescan)
		}
	}
}

type sum = [sha256.Size]byte

type watcher struct {
	events  *fsnotify.Watcher
	files   []string
	watched map[string]bool // directories
}

// follow watches the directories in which a change can change what is read. One
// that cannot be watched is tried again at the next look.
func (w *watcher) follow() {
	needed := map[string]bool{}
	for _, path := range w.files {
		trace(path, needed, maxLinks)
	}
	for dir := range w.watched {
		if !needed[dir] {
			w.events.Remove(dir)
			delete(w.watched, dir)
		}
	}
	for dir := range needed {
		// Again also where it is watched: under the same name there may be
		// another directory by now.
		if w.events.Add(dir) == nil {
			w.watched[dir] = true
		}
	}
}

// maxLinks is how many links in a row are followed; more is a loop.
const maxLinks = 16

// trace adds the directories on the way to a file in which it, or a link that
// leads to it, stands.
func trace(path string, needed map[string]bool, links int) {
	needed[filepath.Dir(path)] = true
	if links == 0 {
		return
	}
	for at := path; at != filepath.Dir(at); at = filepath.Dir(at) {
		target, err := os.Readlink(at)
		if err != nil {
			continue
		}
		needed[filepath.Dir(at)] = true
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		trace(filepath.Join(target, path[len(at):]), needed, links-1)
	}
}

// sums reads the same files as before.
func sums(before map[string]sum) (map[string]sum, error) {
	now := make(map[string]sum, len(before))
	for path := range before {
		contents, err := read(path)
		if err != nil {
			return nil, err
		}
		now[path] = sha256.Sum256(contents)
	}
	return now, nil
}

// read is os.ReadFile of a regular file: it must not wait for the writer of a pipe.
func read(path string) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("no regular file")}
	}
	return os.ReadFile(path)
}
