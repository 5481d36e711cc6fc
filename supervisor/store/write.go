package store

import (
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"time"
)

// complainEvery bounds the warnings about a disk that refuses.
const complainEvery = time.Minute

// write is the one goroutine that writes.
func (s *Store) write() {
	defer close(s.written)
	defer s.spans.close()
	var complained time.Time
	for r := range s.queue {
		var err error
		n := uint64(1)
		switch {
		case r.done != nil:
			close(r.done)
			continue
		case r.spans != nil:
			n = uint64(countSpans(r.spans))
			err = s.spans.append(r.spans)
		default:
			err = s.writeRelease(r.id, r.release)
		}
		if err == nil {
			s.kept.Add(n)
			continue
		}
		s.failed.Add(n)
		if time.Since(complained) > complainEvery {
			complained = time.Now()
			s.log.Warn("the trace store cannot be written: records are lost", "directory", s.dir, "error", err)
		}
	}
}

func (s *Store) writeRelease(id uint64, data []byte) (err error) {
	s.releases[id] = data
	if s.appended >= 2*s.limits.Releases {
		return s.compact()
	}
	f, err := os.OpenFile(s.path(releasesFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(releaseFrame(nil, id, data)); err != nil {
		return err
	}
	// Not synced: what a process has written outlives it, and a flush would hold up
	// that of the state file, between a fork and its record. A host that loses power
	// may lose the last releases.
	s.appended++
	return nil
}

func releaseFrame(b []byte, id uint64, data []byte) []byte {
	return appendFrame(b, append(binary.BigEndian.AppendUint64(nil, id), data...))
}

// ids are the releases stored, the oldest first.
func (s *Store) ids() []uint64 { return slices.Sorted(maps.Keys(s.releases)) }

// compact writes the file of releases anew, with one record each and no more
// of them than may be.
func (s *Store) compact() error {
	ids := s.ids()
	for _, old := range ids[:max(0, len(ids)-s.limits.Releases)] {
		delete(s.releases, old)
	}
	var all []byte
	for _, id := range s.ids() {
		all = releaseFrame(all, id, s.releases[id])
	}
	if err := replace(s.path(releasesFile), all); err != nil {
		return err
	}
	s.appended = len(s.releases)
	return nil
}
