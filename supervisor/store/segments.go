package store

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	segmentPattern = "spans-*.otlp"
	segmentName    = "spans-%016d.otlp"
	// segmentShare is the part of all bytes at which a file is full: what goes
	// when there is no more room is the oldest file, whole.
	segmentShare = 8
	// mostSegments bounds the files: a supervisor that starts anew begins one.
	mostSegments = 256
)

// segments are the files of spans. Each holds frames of OTLP TracesData, and
// none is written to by a second process.
type segments struct {
	dir    string
	limits Limits

	next    int
	current *os.File
	size    int64 // of current
}

func (s *segments) path(n int) string { return filepath.Join(s.dir, fmt.Sprintf(segmentName, n)) }

// find looks which files are there.
func (s *segments) find() error {
	for _, path := range segmentsIn(s.dir) {
		var n int
		if _, err := fmt.Sscanf(filepath.Base(path), segmentName, &n); err == nil {
			s.next = max(s.next, n+1)
		}
	}
	return s.retain()
}

// segmentsIn are the files in a directory, the oldest first.
func segmentsIn(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, segmentPattern)) // fails for a bad pattern alone
	slices.Sort(paths)
	return paths
}

func (s *segments) append(spans *tracepb.ResourceSpans) error {
	payload, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{spans}})
	if err != nil {
		return err
	}
	if len(payload) > mostPayload {
		return fmt.Errorf("%d bytes of spans in one piece", len(payload))
	}
	frame := appendFrame(nil, payload)
	if s.current != nil && s.size+int64(len(frame)) > s.limits.Bytes/segmentShare {
		s.close()
	}
	if s.current == nil {
		if err := s.retain(); err != nil {
			return err
		}
		if s.current, err = os.OpenFile(s.path(s.next), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			return err
		}
		s.next++
		s.size = 0
	}
	n, err := s.current.Write(frame)
	s.size += int64(n)
	return err
}

func (s *segments) close() {
	if s.current != nil {
		s.current.Close()
		s.current = nil
	}
}

// retain removes the oldest files until there is room for another one, and all
// that are too old.
func (s *segments) retain() error {
	type file struct {
		path string
		size int64
		last time.Time
	}
	var files []file
	var sum int64
	for _, path := range segmentsIn(s.dir) {
		if info, err := os.Stat(path); err == nil {
			files = append(files, file{path, info.Size(), info.ModTime()})
			sum += info.Size()
		}
	}
	slices.SortStableFunc(files, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	room := s.limits.Bytes - s.limits.Bytes/segmentShare
	for i, f := range files {
		if sum <= room && len(files)-i < mostSegments && time.Since(f.last) < s.limits.Age {
			break
		}
		if err := os.Remove(f.path); err != nil {
			return err
		}
		sum -= f.size
	}
	return nil
}

// ReadSpans calls each with the spans stored, in the order they came, until it
// returns false.
func (s *Store) ReadSpans(each func(*tracepb.ResourceSpans) bool) {
	if s == nil {
		return
	}
	for _, path := range segmentsIn(s.dir) {
		more := true
		s.readFile(filepath.Base(path), func(payload []byte) {
			var td tracepb.TracesData
			if !more || proto.Unmarshal(payload, &td) != nil {
				return
			}
			for _, rs := range td.ResourceSpans {
				more = more && each(rs)
			}
		})
		if !more {
			return
		}
	}
}
