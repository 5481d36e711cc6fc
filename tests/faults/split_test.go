package faults

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

func rollback(t *testing.T, n *demo.Node) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), n.Executable(), "--socket", n.Socket(), "rollback").CombinedOutput(); err != nil {
		t.Fatalf("rollback: %v: %s", err, out)
	}
}

// wantOwners asks the status who has which listener.
func wantOwners(t *testing.T, n *demo.Node, raw, web int) {
	t.Helper()
	for _, l := range status(t, n).Listeners {
		if want := map[string]int{"raw": raw, "web": web}[l.Name]; l.Generation != want {
			t.Errorf("listener %s is of generation %d, want %d", l.Name, l.Generation, want)
		}
	}
	wantAnswers(t, n.HTTP)
}

// A supervisor that is killed while listeners are split among generations, or while
// a release of one is under way, leaves them so; the next one knows who has which,
// undoes what was under way, and gives back what a rollback asks for.
func TestSplitOutlivesTheSupervisor(t *testing.T) {
	n := node.Start(t, demo.Place{}, listenersConfig(rawAndWeb))
	file, err := n.WriteConfig("candidate", listenersConfig(rawAndWeb))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.ReleaseOf(t.Context(), file, "50%,100%", "web"); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	wantOwners(t, n, 1, 2)
	killAndRestart(t, n)
	wantOwners(t, n, 1, 2)

	patient := listenersConfig(rawAndWeb)
	patient.Config = strings.Replace(patient.Config, "window: 50ms", "window: 1h", 1)
	slow, err := n.WriteConfig("slow", patient)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.ReleaseOf(ctx, slow, "50%,100%", "web")
	}()
	node.Eventually(t, "the ramp of web", func() bool { r := status(t, n).Release; return r != nil && r.Weight == 0.5 })
	killAndRestart(t, n)
	stop()
	<-ended
	wantOwners(t, n, 1, 2)
	node.Eventually(t, "the candidate has ended", func() bool { return len(status(t, n).Generations) == 2 })

	rollback(t, n)
	wantOwners(t, n, 1, 1)
	node.Eventually(t, "the second has ended", func() bool { return len(status(t, n).Generations) == 1 })
	killAndRestart(t, n)
	wantOwners(t, n, 1, 1)
}

// The same where the tables die with the supervisor: the file knows.
func TestSplitWithoutPins(t *testing.T) {
	n := node.Start(t, demo.Place{}, listenersConfig(rawAndWeb))
	file, err := n.WriteConfig("candidate", listenersConfig(rawAndWeb))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.ReleaseOf(t.Context(), file, "100%", "web"); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	n.Kill()
	node.Unpin(t, n.Dir+"/run")
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOwners(t, n, 1, 2)
	// The kernel's account died with the tables, so there is no verdict: both stay.
	if res, err := n.ReleaseOf(t.Context(), file, "50%,100%", "raw"); err != nil || res.ExitCode != 4 {
		t.Fatalf("%+v, %v", res, err)
	}
	wantOwners(t, n, 3, 2)
	rollback(t, n)
	wantOwners(t, n, 1, 2)
}
