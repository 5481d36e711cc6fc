package doctor

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/baton-mesh/baton/supervisor/state"
)

// examineNumbers looks for supervisors of this host that have one number: whoever
// leads packets by it has one address for it.
func examineNumbers(o Options) []Finding {
	running := o.running
	if running == nil {
		running = state.AllRunning
	}
	byNumber := map[uint32][]string{}
	for _, r := range running() {
		if o.Config != nil && sameDir(r.RuntimeDir, o.Config.RuntimeDir) {
			continue // the one that the configuration is for
		}
		if n := r.Record.ServerID; n != 0 {
			byNumber[n] = append(byNumber[n], fmt.Sprintf("the baton of %s (pid %d)", r.RuntimeDir, r.PID))
		}
	}
	const advice = "give each a number of its own: a balancer has one address for a number, and sends it what names the other, too"
	var findings []Finding
	if o.Config != nil {
		n := o.Config.Node.ServerID
		if others := byNumber[n]; len(others) > 0 {
			findings = append(findings, Finding{Level: Warn, Found: fmt.Sprintf("node.server_id %d is that of %s as well", n, strings.Join(others, " and ")), Advice: advice})
		} else {
			findings = append(findings, Finding{Level: OK, Found: fmt.Sprintf("node.server_id %d: no other supervisor of this host has it", n)})
		}
		delete(byNumber, n)
	}
	for _, n := range slices.Sorted(maps.Keys(byNumber)) {
		if others := byNumber[n]; len(others) > 1 {
			findings = append(findings, Finding{Level: Warn, Found: fmt.Sprintf("%s have one node.server_id, %d", strings.Join(others, " and "), n), Advice: advice})
		}
	}
	return findings
}

func sameDir(a, b string) bool {
	if real, err := filepath.EvalSymlinks(b); err == nil {
		b = real
	}
	return filepath.Clean(a) == filepath.Clean(b)
}
