package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// A state file that cannot be written, the disk being full, refuses the next release
// and harms no release that runs. The status says so, and the file is written when it
// can be, though nothing changes any more.
func TestStateFileThatCannotBeWritten(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	full := filepath.Join(n.conf.RuntimeDir, "state.json.new")
	fill := func() {
		t.Helper()
		if err := os.Mkdir(full, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	told := func() bool {
		st := n.s.Status()
		return strings.Contains(st.Unsaved, full)
	}
	written := func(release uint64) {
		t.Helper()
		if err := os.Remove(full); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is written again", func() bool { return n.s.Status().Unsaved == "" })
		st, err := n.s.file.Load()
		if err != nil || st.Release != nil || st.NextRelease != release {
			t.Errorf("%+v, %v", st, err)
		}
	}

	fill()
	what, err := n.s.cook(n.conf, "(test)", Request{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.s.enqueue("command", Request{}, what); err == nil || !strings.Contains(err.Error(), full) {
		t.Errorf("%v", err)
	}
	what.binary.Close()
	if !told() {
		t.Error("the status does not say so")
	}
	written(3)

	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = 500 * time.Millisecond }), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ramp", func() bool { st := n.s.Status().Release; return st != nil && st.Weight == 0.5 })
	fill()
	<-r.done
	if r.result.Outcome != Passed || !told() {
		t.Errorf("%+v", r.result)
	}
	eventually(t, "the one before has ended", func() bool { return len(n.s.Status().Generations) == 1 })
	written(4)
	if got, err := n.get("/"); got != "2" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// SIGTERM in the middle of a ramp gives the flows back before anything is told to stop.
func TestStopDuringARamp(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Hour }), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the ramp", func() bool { st := n.s.Status().Release; return st != nil && st.Weight == 0.5 })
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	<-r.done
	if r.result.Outcome != RolledBack || !strings.Contains(r.result.Reason, errStopping.Error()) {
		t.Errorf("%+v", r.result)
	}
	if n.s.drained.Cut != 0 {
		t.Errorf("%+v", n.s.drained)
	}
}
