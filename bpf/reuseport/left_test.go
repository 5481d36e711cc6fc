package reuseport

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
)

// A program that a process of this build has left on these tables is gone on with; one of
// another build, or with another number of the node, is loaded anew, and takes its pin.
func TestProgramsAreLeft(t *testing.T) {
	dir := bpffs(t)
	ids := func(serverID uint32, open func(string) (*Node, error)) [2]ebpf.ProgramID {
		t.Helper()
		n, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if err := n.Datagrams(serverID); err != nil {
			t.Fatal(err)
		}
		var all [2]ebpf.ProgramID
		for i, p := range []*ebpf.Program{n.prog, n.datagram} {
			info, err := p.Info()
			if err != nil {
				t.Fatal(err)
			}
			all[i], _ = info.ID()
		}
		return all
	}
	pinned := func(name string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, layout, name+"*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("pinned as %s: %v, %v", name, found, err)
		}
		return found[0]
	}
	first := ids(1, Open)
	if again := ids(1, Reopen); again != first {
		t.Errorf("programs %v, and for the next process %v", first, again)
	}
	second := ids(2, Reopen)
	if second[0] != first[0] || second[1] == first[1] {
		t.Errorf("programs %v, and with another number of the node %v", first, second)
	}
	pinned(datagramProgDatagram)
	if err := os.Rename(pinned(steerProgSteer), filepath.Join(dir, layout, steerProgSteer+"-0")); err != nil {
		t.Fatal(err)
	}
	if third := ids(2, Reopen); third[0] == first[0] || third[1] != second[1] {
		t.Errorf("programs %v, and after one of another build %v", second, third)
	}
	pinned(steerProgSteer)
}
