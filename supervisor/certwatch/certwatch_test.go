package certwatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// site is two files that are watched, and the changes that were told.
type site struct {
	t       *testing.T
	dir     string
	changes chan struct{}
	gone    chan error // what was told to be unreadable; nil: nothing
}

// watch watches cert.pem and key.pem in a directory that prepare fills.
func watch(t *testing.T, prepare func(s *site)) *site {
	t.Helper()
	s := &site{t, t.TempDir(), make(chan struct{}, 100), make(chan error, 100)}
	prepare(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	files := map[string]string{s.path("cert.pem"): "cert 1", s.path("key.pem"): "key 1"}
	go func() {
		done <- Watch(ctx, files, func() { s.changes <- struct{}{} }, func(err error) { s.gone <- err })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) write(name, text string) {
	s.t.Helper()
	s.check(os.WriteFile(s.path(name), []byte(text), 0o600))
}

func (s *site) plain() {
	s.write("cert.pem", "cert 1")
	s.write("key.pem", "key 1")
}

// changed waits for one change.
func (s *site) changed() {
	s.t.Helper()
	select {
	case <-s.changes:
	case <-time.After(10 * time.Second):
		s.t.Fatal("the change was not told")
	}
}

// unchanged waits for as long as a change would take to be told.
func (s *site) unchanged() {
	s.t.Helper()
	select {
	case <-s.changes:
		s.t.Fatal("told of a change where there was none")
	case <-time.After(3 * quiet):
	}
}

func TestFilesWrittenAgain(t *testing.T) {
	t.Parallel() // each waits for silence, seconds of it
	s := watch(t, (*site).plain)
	s.unchanged()
	s.write("cert.pem", "cert 2")
	s.write("key.pem", "key 2")
	s.changed()
	s.unchanged() // both at once
	s.write("cert.pem", "cert 2")
	s.write("other.pem", "other")
	s.unchanged()
}

func TestFilesReplaced(t *testing.T) {
	t.Parallel()
	s := watch(t, (*site).plain)
	s.unchanged()
	for _, version := range []string{"2", "3"} {
		for _, name := range []string{"cert", "key"} {
			s.write("new", name+" "+version)
			s.check(os.Rename(s.path("new"), s.path(name+".pem")))
		}
		s.changed()
	}
	s.check(os.Remove(s.path("key.pem")))
	s.unchanged()
	s.write("key.pem", "key 4")
	s.changed()
}

// The files that a release has read may have changed before they are watched.
func TestFilesThatChangedBefore(t *testing.T) {
	t.Parallel()
	s := watch(t, func(s *site) {
		s.write("cert.pem", "cert 2")
		s.write("key.pem", "key 2")
	})
	s.changed()
	s.unchanged()
}

// As Kubernetes does it: cert.pem is a link to ..data/cert.pem, ..data a link to
// a directory, and an update swaps ..data and removes the directory before.
func TestLinkedDirectorySwapped(t *testing.T) {
	t.Parallel()
	version := func(s *site, v string) {
		s.check(os.Mkdir(s.path(v), 0o700))
		s.write(v+"/cert.pem", "cert "+v)
		s.write(v+"/key.pem", "key "+v)
		s.check(os.Symlink(v, s.path("..tmp")))
		s.check(os.Rename(s.path("..tmp"), s.path("..data")))
	}
	s := watch(t, func(s *site) {
		version(s, "1")
		for _, name := range []string{"cert.pem", "key.pem"} {
			s.check(os.Symlink("..data/"+name, s.path(name)))
		}
	})
	s.unchanged()
	for _, v := range []string{"2", "3"} {
		version(s, v)
		s.changed()
	}
	s.check(os.RemoveAll(s.path("1")))
	s.unchanged()
	// And a change where the links lead to.
	s.write("3/cert.pem", "cert 4")
	s.changed()
}

// Any directory on the way may be a link.
func TestDirectoryAboveSwapped(t *testing.T) {
	t.Parallel()
	releases := t.TempDir()
	point := func(s *site, v string) {
		dir := filepath.Join(releases, v, "live")
		s.check(os.MkdirAll(dir, 0o700))
		for _, name := range []string{"cert", "key"} {
			s.check(os.WriteFile(filepath.Join(dir, name+".pem"), []byte(name+" "+v), 0o600))
		}
		s.check(os.Symlink(filepath.Join(releases, v), filepath.Join(releases, "tmp")))
		s.check(os.Rename(filepath.Join(releases, "tmp"), filepath.Join(releases, "current")))
	}
	s := watch(t, func(s *site) {
		s.dir = filepath.Join(releases, "current", "live")
		point(s, "1")
	})
	s.unchanged()
	point(s, "2")
	s.changed()
	point(s, "3")
	s.changed()
}

// A file that goes is told of once, and when it is back what is new in any, or that
// nothing is.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	s := watch(t, (*site).plain)
	told := func(want error) {
		t.Helper()
		select {
		case err := <-s.gone:
			if !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nothing was told")
		}
	}
	told(nil)
	for range 2 {
		s.check(os.Remove(s.path("cert.pem")))
		told(os.ErrNotExist)
		s.write("cert.pem", "cert 1")
		told(nil)
	}
	s.check(os.Remove(s.path("cert.pem")))
	told(os.ErrNotExist)
	s.write("key.pem", "key 2")
	s.unchanged()
	s.write("cert.pem", "cert 1")
	s.changed()
	if len(s.gone) > 0 {
		t.Errorf("told again: %v", <-s.gone)
	}
}
