package release

import (
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// TestReleasesWithoutSteeringFail is the control group: the same releases under
// the same clients, with new flows left to the kernel's hash over all
// generations that listen. If nothing failed here either, the tests beside it
// would prove nothing.
func TestReleasesWithoutSteeringFail(t *testing.T) {
	needTools(t)
	run := startRunWith(t, demo.Settings{MaxGenerations: 64, Unsteered: true})
	defer run.finish()
	const releases = 10
	for range releases {
		run.release(t, false)
	}
	run.finish()
	failed, all := 0, 0
	for _, op := range run.load.Ops() {
		all++
		if op.Failed() {
			failed++
		}
	}
	t.Logf("without steering %d of %d operations failed over %d releases", failed, all, releases)
	if failed == 0 {
		t.Error("nothing failed without steering: the other tests cannot tell the difference")
	}
}
