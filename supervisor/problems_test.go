package supervisor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/proxy/config"
)

// problem is what the status says of one kind; empty: nothing.
func (n *node) problem(what ProblemKind) string {
	for _, p := range n.s.Status().Problems {
		if p.What == what {
			return p.Says
		}
	}
	return ""
}

// A generation that ends again and again, each time that it is started, is in the
// status with how it ended, and in the releases that start it; a rollback is the cure.
func TestCrashLoopIsTold(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	if r := n.release(n.like("die-when-told"), Request{}); r.Outcome != Passed {
		t.Fatalf("%+v", r)
	}
	if p := n.problem(CrashLoop); p != "" {
		t.Errorf("of one that serves: %s", p)
	}
	if err := os.WriteFile(filepath.Join(n.conf.RuntimeDir, "die"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loop is told", func() bool {
		p := n.problem(CrashLoop)
		return strings.Contains(p, "which served, has ended: exit status 6") && strings.Contains(p, "again 3 times in a row")
	})
	if n.s.Status().Drained.Crashed == 0 {
		t.Error("no crash is counted")
	}
	var again []Result
	for _, r := range n.s.Results() {
		if r.Cause == "crash" {
			again = append(again, r)
		}
	}
	if len(again) < 2 {
		t.Fatalf("%+v", again)
	}
	for _, r := range again { // one that ends while it is probed fails by whatever is seen first
		if r.Reason == "" || r.Outcome == Passed && !strings.HasSuffix(r.Reason, ", which served, has ended: exit status 6") {
			t.Errorf("%+v", r)
		}
	}

	if r, err := n.s.Rollback(context.Background()); err != nil || r.Outcome != Passed {
		t.Fatalf("%+v, %v", r, err)
	}
	if p := n.problem(CrashLoop); p != "" {
		t.Errorf("after the rollback: %s", p)
	}
	if _, err := n.get("/"); err != nil {
		t.Error(err)
	}
}

// A certificate's file that goes is in the status for as long as it is gone.
func TestMissingCertificateIsTold(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pair.pem")
	write := func() {
		t.Helper()
		if err := os.WriteFile(file, []byte("certificate"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	n := serve(t, conf(t, "serve", func(c *config.Config) {
		c.Listeners[0].TLS = config.TLS{CertFile: file, Certificate: "certificate", KeyFile: file, PrivateKey: "certificate"}
	}))
	for range 2 {
		if p := n.problem(CertificateFiles); p != "" {
			t.Errorf("while it is there: %s", p)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is told", func() bool { return strings.Contains(n.problem(CertificateFiles), file) })
		write()
		eventually(t, "it is there again", func() bool { return n.problem(CertificateFiles) == "" })
	}
}
