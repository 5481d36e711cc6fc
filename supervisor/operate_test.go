package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// A ramp that is paused stays at its share, is watched, and goes on when it is
// resumed.
func TestPauseAndResume(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	if _, err := n.s.Pause(); !errors.Is(err, ErrRefused) {
		t.Errorf("pause without a release: %v", err)
	}
	r, err := n.enqueue(n.like("mute-at-first", func(c *config.Config) { c.Release.ReadyTimeout = time.Minute }), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is being started", func() bool { return n.generation(2) != nil })
	if _, err := n.s.Resume(); !errors.Is(err, ErrRefused) {
		t.Errorf("resume of what is not paused: %v", err)
	}
	for range 2 { // the second time nothing changes
		if st, err := n.s.Pause(); err != nil || !st.Paused {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	if err := os.WriteFile(filepath.Join(n.conf.RuntimeDir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits before the shift", func() bool { st := n.s.Status().Release; return st != nil && st.Stage == "shift" })
	if st := n.s.Status(); st.Current != 1 || st.Release.Weight != 0 || !st.Release.Paused {
		t.Errorf("%+v", st.Release)
	}
	if got, err := n.get("/"); got != "1" {
		t.Errorf("%q, %v", got, err)
	}
	if st, err := n.s.Resume(); err != nil || st.Paused {
		t.Errorf("%+v, %v", st, err)
	}
	if res, _ := r.wait(context.Background()); res.Outcome != Passed {
		t.Errorf("%+v", res)
	}
}

// Paused or not, a candidate that dies is found out, and a rollback aborts.
func TestPausedReleaseEnds(t *testing.T) {
	for how, want := range map[string]string{"die": "generation 2 ended: killed by SIGKILL", "rollback": "rollback was asked for", "hang-up-soon": "given up 1 of its 1 listening sockets"} {
		t.Run(how, func(t *testing.T) {
			n := serve(t, conf(t, "serve"))
			behaves := "serve"
			if how == "hang-up-soon" {
				behaves = how
			}
			r, err := n.enqueue(n.like(behaves, func(c *config.Config) { c.Release.Verify.Window = time.Millisecond }), Request{Ramp: []config.Percent{0.5, 1}})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is paused", func() bool { _, err := n.s.Pause(); return err == nil })
			eventually(t, "it is in the ramp", func() bool { st := n.s.Status().Release; return st == nil || st.Stage == "shift" })
			switch how {
			case "die":
				eventually(t, "its process is known", func() bool { return n.generation(2) != nil })
				syscall.Kill(n.generation(2).PID, syscall.SIGKILL)
			case "rollback":
				if _, err := n.s.Rollback(t.Context()); err != nil {
					t.Error(err)
				}
			}
			res, _ := r.wait(context.Background())
			if res.Outcome != RolledBack && res.Outcome != Refused || !strings.Contains(res.Reason, want) {
				t.Errorf("%s: %s", res.Outcome, res.Reason)
			}
			if got, err := n.get("/"); got != "1" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// A rollback ends the last probe of a candidate, too: that this had no answer is not held
// against the candidate.
func TestRollbackDuringTheLastProbe(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	n.s.patience.Store(int64(time.Minute))
	r, err := n.enqueue(n.like("never-accept", func(c *config.Config) {
		c.Release.DrainTimeout, c.Release.Verify.Window = time.Second, time.Millisecond
	}), Request{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is asked for the last time", func() bool {
		n.s.mu.Lock()
		defer n.s.mu.Unlock()
		return r.candidate != nil && r.candidate.dialed.on("web") > probesEach
	})
	if _, err := n.s.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	if res := n.ended(r); res.Outcome != RolledBack || res.Reason != "verify: rollback was asked for" || res.Verdict != nil {
		t.Errorf("%+v, %+v", res, res.Verdict)
	}
}

// Who has ended counts for no cap, though it is not forgotten yet.
func TestRoomOfWhoHasEnded(t *testing.T) {
	gone, serves := &generation{id: 1, state: Gone}, &generation{id: 2, state: Serving}
	gone.dead.Store(true)
	s := &Supervisor{generations: []*generation{gone, serves}}
	most := func(n int) *release {
		return &release{recipe: &recipe{config: &config.Config{Release: config.Release{MaxGenerations: n}}}}
	}
	if err := s.makeRoom(t.Context(), most(2)); err != nil {
		t.Error(err)
	}
	if err := s.makeRoom(t.Context(), most(1)); err == nil {
		t.Error("there is no room, and nobody drains")
	}
}

// A drain's end is brought forward; who does not drain is refused in words.
func TestDrainIsBroughtForward(t *testing.T) {
	n := serve(t, conf(t, "serve", func(c *config.Config) { c.Release.DrainTimeout = time.Minute }))
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("GET /for-ever HTTP/1.1\r\nHost: test\r\n\r\n"))
	eventually(t, "the request is there", func() bool {
		q, err := n.s.queueLengths(n.s.serving()[0].sockets)
		return err == nil && q.ToAccept == 0
	})
	if res := n.release(n.conf, Request{NoVerify: true}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	for id, want := range map[uint64]string{2: "generation 2 gets new flows", 9: "no generation 9 lives"} {
		if _, err := n.s.Drain(id, 0); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("drain %d: %v", id, err)
		}
	}
	if _, err := n.s.Drain(1, 2*time.Hour); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "already") {
		t.Errorf("a later deadline: %v", err)
	}
	st, err := n.s.Drain(1, 30*time.Second)
	if left := time.Until(st.Deadline); err != nil || left > 30*time.Second {
		t.Errorf("%v left, %v", left, err)
	}
	if _, err := n.s.Drain(1, 0); err != nil {
		t.Error(err)
	}
	eventually(t, "it has ended", func() bool { return n.generation(1) == nil })
}
