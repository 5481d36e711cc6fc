package balance

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/balancer"
)

// pins is where the tables of the lab's balancer are, one directory for each layout.
func (l *lab) pins(layout string) string {
	sum := sha256.Sum256([]byte(l.dir + "/run"))
	return filepath.Join("/sys/fs/bpf/baton", fmt.Sprintf("balancer-%x", sum[:8]), layout)
}

const layout = "xdp-v4"

// The build before has left a program that forwards by tables of another layout.
// This one goes on from what they have in common: no flow ends, and who was
// drained stays so. What is pinned as v1 is this build's own, under that name.
func TestTablesOfTheVersionBefore(t *testing.T) {
	l := newLab(t, 2)
	l.start()
	flows := l.flows(20)
	if out, code := l.command("drain", "node-2"); code != 0 {
		t.Fatalf("drain: %d, %s", code, out)
	}
	l.kill()
	if err := os.Rename(l.pins(layout), l.pins("xdp-v1")); err != nil {
		t.Fatal(err)
	}
	// Other ids of rings and of VIPs' counters would do no harm, nor that there are none.
	for _, table := range []string{"rings", "tallies", "servers", "filter"} {
		if err := os.Remove(filepath.Join(l.pins("xdp-v1"), table)); err != nil {
			t.Fatal(err)
		}
	}
	l.wantMoving(flows, "")
	l.start()
	l.wantMoving(flows, "")
	if _, err := os.Stat(l.pins("xdp-v1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("tables of the version before are still pinned: %v", err)
	}
	l.await("node-2", balancer.Drained)
	if n := len(at(l.flows(20), "node-2")); n > 0 {
		t.Errorf("a real that was drained gets %d new flows", n)
	}
	if n := l.status().VIPs[0].Packets["table"]; n == 0 {
		t.Error("no packet was found in the connection table")
	}
	// And once more, from its own.
	l.kill()
	l.start()
	l.wantMoving(flows, "")
}

// A build that is older than what hangs there says so and touches nothing.
func TestTablesOfALaterVersion(t *testing.T) {
	l := newLab(t, 2)
	l.start()
	flows := l.flows(10)
	l.kill()
	if err := os.Rename(l.pins(layout), l.pins("xdp-v99")); err != nil {
		t.Fatal(err)
	}
	out, code := l.command("--config", l.config(""))
	if code != 1 || !strings.Contains(out, "a balancer with tables of xdp-v99 hangs there") || !strings.Contains(out, "baton balance remove") {
		t.Errorf("%d, %s", code, out)
	}
	l.wantMoving(flows, "")
	if out, code := l.command("remove", "--config", l.config("")); code != 0 {
		t.Errorf("remove: %d, %s", code, out)
	}
	l.start()
	l.flows(5)
}
