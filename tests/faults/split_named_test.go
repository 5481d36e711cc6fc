package faults

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// TestSupervisorKilledInSplitReleases kills the supervisor at those transitions of a
// release of one listener, which has streams and datagrams, that move flows; with
// BATON_KILLS at all of them. Each time the listener belongs to the candidate
// or to who had it before, and the others to who has them. No client sees any of it.
func TestSupervisorKilledInSplitReleases(t *testing.T) {
	d, load := underDeaths(t, demo.Settings{Steering: "bpf", Datagrams: true})
	d.of, d.living = []string{"edge"}, 2
	some := func(all []string) []string {
		if os.Getenv("BATON_KILLS") != "" {
			return all
		}
		return slices.DeleteFunc(all, func(name string) bool {
			return !slices.Contains([]string{"shift to 0.5 stored", "shift to 1 stored", "undo shift ends"}, name)
		})
	}
	owners := func(at string) {
		t.Helper()
		var rest, own uint64
		for _, l := range status(t, d.n).Listeners {
			switch {
			case strings.HasPrefix(l.Name, "edge"):
				if own != 0 && own != uint64(l.Generation) {
					t.Errorf("after %s: the streams and datagrams of edge are of two generations", at)
				}
				own = uint64(l.Generation)
			case rest != 0 && rest != uint64(l.Generation):
				t.Errorf("after %s: the others are of generations %d and %d", at, rest, l.Generation)
			default:
				rest = uint64(l.Generation)
			}
		}
		if rest != 1 || own < 2 {
			t.Errorf("after %s: edge is of generation %d, the others of %d", at, own, rest)
		}
	}
	if res := d.release(t); res == nil || res.ExitCode != 0 {
		t.Fatalf("%+v", res)
	}
	d.settle(t)
	owners("the first release")
	all := d.passed(t, nil)
	for _, at := range some(slices.Clone(all)) {
		d.dieAt(t, at, d.release)
		owners(at)
	}
	d.settle(t)
	d.takeBack(t)
	d.settle(t)
	for _, at := range some(d.passed(t, all)) {
		d.dieAt(t, at, d.takeBack)
		owners(at)
	}
	d.settle(t)
	d.of, d.living = nil, 1
	if res := d.release(t); res == nil || res.ExitCode != 0 {
		t.Errorf("a release of all afterwards: %+v", res)
	}
	d.settle(t)
	ok := load.End()
	slices.Sort(d.took)
	t.Logf("killed %d times, %d operations, none failed; in charge after %v in the median, %v at most", len(d.took), ok, d.took[len(d.took)/2], d.took[len(d.took)-1])
}
