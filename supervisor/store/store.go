// Package store keeps what a node has done: its releases with their stages and
// verdicts, and the spans that were kept, in files that outlive the supervisor.
//
// Nothing waits for it. Records are queued and one goroutine writes them; when
// the disk is slower than they come, they are dropped and counted. Damage in a
// file costs the records it hit: the rest is read, the file is set aside, and a
// warning says so. Every file is a sequence of frames, see frame.go.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Limits bound what is kept. Zero values stand for the defaults.
type Limits struct {
	// Releases is how many are kept. Defaults to 1000.
	Releases int
	// Bytes bounds the files of spans together. Defaults to 64 MiB.
	Bytes int64
	// Age is how long a file of spans is kept after its last span. Defaults to 30 days.
	Age time.Duration
}

const (
	releasesFile = "releases.log"
	openFile     = "open.otlp"
	// queued bounds the records that wait for the disk.
	queued = 1024
	// mostFile bounds what is read of a file at once. Ours are smaller.
	mostFile = 256 << 20
)

// Store is a directory of records. A nil Store keeps nothing.
type Store struct {
	dir    string
	limits Limits
	log    *slog.Logger

	queue   chan record
	written chan struct{} // closed when the writer has ended

	ending sync.RWMutex // held to write by who closes queue
	ended  bool

	kept, dropped, failed atomic.Uint64

	// Owned by the writer.
	releases map[uint64][]byte
	appended int // records in releases.log
	spans    segments
}

// record is a release, spans, or a caller that waits for what came before it.
type record struct {
	id      uint64
	release []byte
	spans   *tracepb.ResourceSpans
	done    chan<- struct{}
}

// Open makes dir, reads the releases that are there, and starts the writer. An
// error says that nothing can be kept there, never that something is damaged.
func Open(dir string, limits Limits, log *slog.Logger) (*Store, error) {
	if limits.Releases == 0 {
		limits.Releases = 1000
	}
	if limits.Bytes == 0 {
		limits.Bytes = 64 << 20
	}
	if limits.Age == 0 {
		limits.Age = 30 * 24 * time.Hour
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, limits: limits, log: log,
		queue: make(chan record, queued), written: make(chan struct{}),
		releases: map[uint64][]byte{}, spans: segments{dir: dir, limits: limits},
	}
	damaged := s.readFile(releasesFile, func(payload []byte) {
		if id, data, ok := splitRelease(payload); ok {
			s.releases[id] = data
			s.appended++
		}
	})
	if damaged {
		if err := os.Rename(s.path(releasesFile), s.path(releasesFile+".damaged")); err != nil {
			return nil, err
		}
	}
	if err := s.compact(); err != nil {
		return nil, err
	}
	if err := s.spans.find(); err != nil {
		return nil, err
	}
	go s.write()
	return s, nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// readFile scans a file and reports whether there is something in it that
// cannot be read. A file that is not there is empty.
func (s *Store) readFile(name string, each func(payload []byte)) (damaged bool) {
	data, err := readBounded(s.path(name))
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil {
		s.log.Warn("a file of the trace store cannot be read: going on without it", "file", s.path(name), "error", err)
		return true
	}
	records := 0
	bad := scan(data, func(payload []byte) { records++; each(payload) })
	if bad > 0 {
		s.log.Warn("a file of the trace store is damaged: what is whole is kept", "file", s.path(name),
			"records", records, "unreadable_bytes", bad)
	}
	return bad > 0
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > mostFile {
		return nil, fmt.Errorf("%s of %d bytes is none of ours", info.Mode().Type(), info.Size())
	}
	return os.ReadFile(path)
}

func splitRelease(payload []byte) (id uint64, data []byte, ok bool) {
	if len(payload) < 8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(payload), payload[8:], true
}

// Releases returns what was stored of each release when the store was opened,
// oldest first.
func (s *Store) Releases() [][]byte {
	if s == nil {
		return nil
	}
	all := make([][]byte, 0, len(s.releases))
	for _, id := range s.ids() {
		all = append(all, s.releases[id])
	}
	return all
}

// PutRelease stores what is known of a release, in place of what was.
func (s *Store) PutRelease(id uint64, data []byte) { s.put(record{id: id, release: data}, 1) }

// PutSpans stores spans.
func (s *Store) PutSpans(spans *tracepb.ResourceSpans) {
	s.put(record{spans: spans}, uint64(countSpans(spans)))
}

func (s *Store) put(r record, n uint64) {
	if s == nil {
		return
	}
	s.ending.RLock()
	defer s.ending.RUnlock()
	if s.ended {
		s.dropped.Add(n)
		return
	}
	select {
	case s.queue <- r:
	default:
		s.dropped.Add(n)
	}
}

func countSpans(rs *tracepb.ResourceSpans) (n int) {
	for _, scope := range rs.GetScopeSpans() {
		n += len(scope.GetSpans())
	}
	return n
}

// Counts says what became of spans and releases.
type Counts struct {
	Kept    uint64 `json:"kept"`
	Dropped uint64 `json:"dropped"` // the disk was slower than they came
	Failed  uint64 `json:"failed"`  // the disk did not take them
}

// Counts are since [Open].
func (s *Store) Counts() Counts {
	if s == nil {
		return Counts{}
	}
	return Counts{s.kept.Load(), s.dropped.Load(), s.failed.Load()}
}

// Flush waits until what was put before is written.
func (s *Store) Flush() {
	if s == nil {
		return
	}
	done := make(chan struct{})
	s.ending.RLock()
	ended := s.ended
	if !ended {
		s.queue <- record{done: done}
	}
	s.ending.RUnlock()
	if !ended {
		<-done
	}
}

// Close writes what is queued and ends the writer. What is put after it is
// dropped and counted.
func (s *Store) Close() {
	if s == nil {
		return
	}
	s.ending.Lock()
	if !s.ended {
		s.ended = true
		close(s.queue)
	}
	s.ending.Unlock()
	<-s.written
}

// SaveOpen replaces what is stored of the spans that have not ended. It is on
// disk before it returns, as far as the death of this process goes.
func (s *Store) SaveOpen(spans *tracepb.TracesData) error {
	if s == nil {
		return nil
	}
	if len(spans.GetResourceSpans()) == 0 {
		err := os.Remove(s.path(openFile))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	data, err := proto.Marshal(spans)
	if err != nil {
		return err
	}
	return replace(s.path(openFile), appendFrame(nil, data))
}

// Unfinished returns the spans that had not ended when the last supervisor did.
func (s *Store) Unfinished() *tracepb.TracesData {
	all := new(tracepb.TracesData)
	if s == nil {
		return all
	}
	if s.readFile(openFile, func(payload []byte) {
		var td tracepb.TracesData
		if proto.Unmarshal(payload, &td) == nil {
			all.ResourceSpans = append(all.ResourceSpans, td.ResourceSpans...)
		}
	}) {
		os.Rename(s.path(openFile), s.path(openFile+".damaged"))
	}
	return all
}

// replace puts a file of that content in the place of another.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
