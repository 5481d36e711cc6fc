package faults

import (
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// A supervisor that is killed while it adopts what another one left has taken nothing
// away: the next one adopts the same, of a release that was under way while listeners
// were split, too. No client sees any of it.
func TestSupervisorKilledWhileItAdopts(t *testing.T) {
	settings := demo.Settings{Steering: "bpf", Datagrams: true}
	n := node.Start(t, demo.Place{}, settings)
	load := node.Under(t, n, func(l *demo.Load) { l.Slow = time.Second })
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.ReleaseOf(t.Context(), file, "100%", "edge"); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	settings.VerifyWindow = time.Hour
	slow, err := n.WriteConfig("slow", settings)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.ReleaseOf(t.Context(), slow, "50%,100%", "edge")
	}()
	node.Eventually(t, "the ramp of edge", func() bool { r := status(t, n).Release; return r != nil && r.Weight == 0.5 })
	n.Kill()
	<-ended

	const spread = 400 * time.Millisecond // an adoption, or a good part of one
	rounds := kills(t, 4)
	for i := range rounds {
		if err := n.Begin(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(spread * time.Duration(i) / time.Duration(rounds))
		n.Kill()
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range status(t, n).Listeners {
		if want := map[string]int{"edge": 2, "edge.udp": 2}[l.Name]; l.Generation != max(want, 1) {
			t.Errorf("listener %s is of generation %d, want %d", l.Name, l.Generation, max(want, 1))
		}
	}
	node.Eventually(t, "the candidate, which had half of edge, is gone", func() bool { return len(status(t, n).Generations) == 2 })
	if res, err := n.ReleaseOf(t.Context(), file, "50%,100%", "edge"); err != nil || res.ExitCode != 0 {
		t.Errorf("a release afterwards: %+v, %v", res, err)
	}
	load.End()
}
