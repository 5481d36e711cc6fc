package quic

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/tests/node"
)

// pair is a release that was stopped when both generations are ready, before new
// flows are moved: the test moves them as it wants.
type pair struct {
	t *testing.T
	*site
	tables *reuseport.Node
	was    reuseport.Shift
	slots  [2]uint8
	ended  chan string // the outcome of the release
}

// pair starts a release and stops it. The candidate's configuration differs by
// what change says; nil: by nothing.
func (s *site) pair(t *testing.T, change *strings.Replacer) *pair {
	t.Helper()
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	next := strings.Replace(string(text), "verify: {window: 100ms}", `ramp: ["1%", "100%"]`+"\n  verify: {window: 5s}", 1)
	if change != nil {
		next = change.Replace(next)
	}
	file := filepath.Join(s.Dir, "ramp.yaml")
	if err := os.WriteFile(file, []byte(next), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &pair{t: t, site: s, ended: make(chan string, 1)}
	go func() {
		// It is ended by rollBack, at a time when the test's context has ended.
		result, err := s.Release(context.WithoutCancel(t.Context()), file)
		if err != nil {
			p.ended <- err.Error()
			return
		}
		p.ended <- result.Outcome
	}()
	node.Eventually(t, "the release is paused", func() bool {
		_, err := admin.Dial(s.Socket()).Pause(t.Context())
		return err == nil
	})
	node.Eventually(t, "its candidate is ready", func() bool {
		status, err := s.Status(t.Context())
		return err == nil && status.Release != nil && status.Release.Stage == "shift"
	})
	p.tables = s.steering(t)
	p.was = p.tables.Shift(reuseport.All)
	p.slots = [2]uint8{uint8(slotOf(t, s, "1")), uint8(slotOf(t, s, "2"))}
	return p
}

// flip gives new flows to the first generation, 0, or to the second, 1.
func (p *pair) flip(to int) {
	p.tables.SetShift(reuseport.All, reuseport.Shift{Current: p.slots[to], Other: p.slots[1-to], Salt: p.was.Salt})
}

// rollBack leaves everything as it was before the release.
func (p *pair) rollBack() {
	p.t.Helper()
	p.tables.SetShift(reuseport.All, p.was)
	admin.Dial(p.Socket()).Rollback(context.WithoutCancel(p.t.Context()))
	p.t.Logf("the release under it: %s", <-p.ended)
}

// steering opens the node's tables beside the supervisor.
func (s *site) steering(t *testing.T) *reuseport.Node {
	t.Helper()
	instance := strings.ReplaceAll(strings.Trim(filepath.Join(s.Dir, "run"), "/"), "/", "-")
	found, err := filepath.Glob("/sys/fs/bpf/baton/" + instance + "-*")
	if err != nil || len(found) != 1 {
		t.Fatalf("pins of the node: %v, %v", found, err)
	}
	n, err := reuseport.Reopen(found[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// TestFlips moves new flows from one generation to the other and back every 50 ms,
// in the middle of handshakes, under every kind of client. BATON_FLIPS is for how
// long, instead of two seconds.
func TestFlips(t *testing.T) {
	last := 2 * time.Second
	if text := os.Getenv("BATON_FLIPS"); text != "" {
		var err error
		if last, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := startSite(t, siteSettings{})
	p := s.pair(t, nil)
	l := s.load(t)
	l.all(1500)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	flips := 0
	for end := time.Now().Add(last); time.Now().Before(end); <-tick.C {
		flips++
		p.flip(flips % 2)
	}
	l.wantNoneFailed()
	t.Logf("%d flips, answers by generation: %v", flips, l.answered)
	if len(l.answered) != 2 {
		t.Error("not both generations had connections")
	}
	p.rollBack()
}
