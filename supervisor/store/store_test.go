package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

func open(t *testing.T, dir string, l Limits) (*Store, *bytes.Buffer) {
	t.Helper()
	log := new(bytes.Buffer)
	s, err := Open(dir, l, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, log
}

func span(name string) *tracepb.ResourceSpans {
	return &tracepb.ResourceSpans{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{Name: name}}}}}
}

// names are those of the spans that are stored.
func (s *Store) names() (all []string) {
	s.Flush()
	s.ReadSpans(func(rs *tracepb.ResourceSpans) bool {
		for _, scope := range rs.ScopeSpans {
			for _, span := range scope.Spans {
				all = append(all, span.Name)
			}
		}
		return true
	})
	return all
}

func text(releases [][]byte) string { return string(bytes.Join(releases, []byte(" "))) }

// What was put is there for the next one, the latest of each release, in order.
func TestNextOneHasIt(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, Limits{})
	for _, id := range []uint64{2, 10, 3} {
		s.PutRelease(id, []byte(fmt.Sprintf("begun-%d", id)))
	}
	s.PutRelease(10, []byte("ended-10"))
	s.PutSpans(span("a"))
	s.PutSpans(span("b"))
	if got := s.names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("spans %v", got)
	}
	open1 := &tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{span("open")}}
	if err := s.SaveOpen(open1); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.PutSpans(span("late")) // dropped, counted, no panic
	if c := s.Counts(); c != (Counts{Kept: 6, Dropped: 1}) {
		t.Errorf("%+v", c)
	}

	s, log := open(t, dir, Limits{})
	if got := text(s.Releases()); got != "begun-2 begun-3 ended-10" {
		t.Errorf("releases %q", got)
	}
	if left := s.Unfinished(); len(left.ResourceSpans) != 1 || left.ResourceSpans[0].ScopeSpans[0].Spans[0].Name != "open" {
		t.Errorf("unfinished: %v", left)
	}
	s.PutSpans(span("c"))
	if got := s.names(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("spans %v", got)
	}
	if err := s.SaveOpen(new(tracepb.TracesData)); err != nil || len(s.Unfinished().ResourceSpans) != 0 {
		t.Errorf("nothing is open, and %v is left: %v", s.Unfinished(), err)
	}
	if log.Len() > 0 {
		t.Errorf("complaints about sound files: %s", log)
	}
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir, Limits{Releases: 5, Bytes: 64 << 10})
	for id := range uint64(100) {
		s.PutRelease(id, []byte(fmt.Sprint(id)))
	}
	filler := strings.Repeat("x", 1000)
	for i := range 500 {
		s.PutSpans(span(fmt.Sprintf("%03d%s", i, filler)))
		s.Flush()
	}
	names := s.names()
	if n := len(names); n < 40 || !strings.HasPrefix(names[n-1], "499") {
		t.Errorf("%d spans are left, the last %.3s", n, names[n-1])
	}
	sum := int64(0)
	for _, path := range segmentsIn(dir) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if sum > 64<<10 {
		t.Errorf("%d bytes of spans, more than 64 KiB", sum)
	}
	s.Close()
	s, _ = open(t, dir, Limits{Releases: 5, Age: time.Minute})
	if got := text(s.Releases()); got != "95 96 97 98 99" {
		t.Errorf("releases %q", got)
	}
	if got := s.names(); len(got) != 0 {
		t.Errorf("%d spans are left that are too old", len(got))
	}
}

// Whatever is damaged, what is whole is read, the damage is said and set aside,
// and the store goes on.
func TestDamage(t *testing.T) {
	const n = 20
	genuine := regexp.MustCompile(`^(release|span)-[01][0-9]$`)
	for name, damage := range map[string]func(b []byte) []byte{
		"cut short":          func(b []byte) []byte { return b[:len(b)-7] },
		"a bit flipped":      func(b []byte) []byte { b[len(b)/2+22] ^= 4; return b },
		"a hole in it":       func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+40]); return b },
		"garbage behind":     func(b []byte) []byte { return append(b, "BTN1 and no record"...) },
		"garbage before":     func(b []byte) []byte { return append([]byte("BTN1 and no record"), b...) },
		"a length beyond it": func(b []byte) []byte { binary.BigEndian.PutUint32(b[4:], 1<<31); return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := open(t, dir, Limits{})
			for i := range uint64(n) {
				s.PutRelease(i, []byte(fmt.Sprintf("release-%02d", i)))
				s.PutSpans(span(fmt.Sprintf("span-%02d", i)))
			}
			s.Close()
			for _, file := range []string{releasesFile, fmt.Sprintf(segmentName, 0)} {
				path := filepath.Join(dir, file)
				b, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(path, damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s, log := open(t, dir, Limits{})
			if got := s.Releases(); len(got) < n-2 {
				t.Errorf("%d of %d releases are read", len(got), n)
			}
			for _, r := range s.Releases() {
				if !genuine.Match(r) {
					t.Errorf("a release that nobody wrote: %q", r)
				}
			}
			names := s.names()
			if len(names) < n-2 {
				t.Errorf("%d of %d spans are read", len(names), n)
			}
			for _, name := range names {
				if !genuine.MatchString(name) {
					t.Errorf("a span that nobody wrote: %q", name)
				}
			}
			if got := log.String(); strings.Count(got, "is damaged") != 2 {
				t.Errorf("the log does not say it of both: %s", got)
			}
			if _, err := os.Stat(filepath.Join(dir, releasesFile+".damaged")); err != nil {
				t.Error(err)
			}
			s.PutRelease(99, []byte("after"))
			s.Close()
			s, log = open(t, dir, Limits{})
			if got := text(s.Releases()); !strings.HasSuffix(got, "after") || log.Len() > 0 {
				t.Errorf("afterwards: %s, %s", got, log)
			}
		})
	}
}

// No content of a file makes the reader fail, or find what nobody wrote.
func FuzzScan(f *testing.F) {
	good := appendFrame(appendFrame(nil, []byte("one")), []byte("another"))
	f.Add(good, 3, byte(1))
	f.Add([]byte("BTN1BTN1"), 0, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at int, x byte) {
		scan(b, func([]byte) {})
		broken := slices.Clone(good)
		broken[uint(at)%uint(len(broken))] ^= x
		scan(append(b, broken...), func(p []byte) {
			if !bytes.Contains(good, p) && !bytes.Contains(b, p) {
				t.Errorf("%q was never written", p)
			}
		})
	})
}

// A file of a supervisor that was killed while it wrote has every record that was
// whole by then.
func TestAnyTruncation(t *testing.T) {
	var whole []byte
	var ends []int
	for i := range 8 {
		whole = appendFrame(whole, bytes.Repeat([]byte{byte(i)}, 7*i))
		ends = append(ends, len(whole))
	}
	for cut := range len(whole) {
		want, sound := 0, 0
		for _, end := range ends {
			if end <= cut {
				want, sound = want+1, end
			}
		}
		got := 0
		if bad := scan(whole[:cut], func([]byte) { got++ }); got != want || bad != cut-sound {
			t.Errorf("cut at %d of %d: %d records, want %d; %d bytes bad, want %d", cut, len(whole), got, want, bad, cut-sound)
		}
	}
}
