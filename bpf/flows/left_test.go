package flows

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/scratch"
	"github.com/baton-mesh/baton/tests/testnet"
)

// The programs of a process of this build go on where they hang, and those of another
// build give way; either way each flow is counted once.
func TestProgramsAreLeft(t *testing.T) {
	dir := scratch.Pins(t)
	first := open(t, dir)
	s := serve(t, first, testnet.New(t, "node")[0], 0, 7)
	flows := uint64(0)
	counted := func(f *Flows) {
		t.Helper()
		_, conn := s.pair()
		unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(conn)
		flows++
		want(t, f, 7, Counts{Established: flows, Closed: flows, ResetSent: flows, ResetUnanswered: flows, Unanswered: flows, Failed: flows})
	}
	// next is another process, and reports whether it has loaded programs.
	next := func(before *Flows) (*Flows, bool) {
		t.Helper()
		was, err := before.objs.ResetSent.Info()
		if err != nil {
			t.Fatal(err)
		}
		before.Close()
		f := open(t, dir)
		is, err := f.objs.ResetSent.Info()
		if err != nil {
			t.Fatal(err)
		}
		old, _ := was.ID()
		now, _ := is.ID()
		return f, old != now
	}
	counted(first)
	f, loaded := next(first)
	if loaded {
		t.Error("the next process has loaded the programs again")
	}
	counted(f)
	sums, err := filepath.Glob(filepath.Join(dir, layout, flowsProgFlows+"-*"))
	if err != nil || len(sums) != 1 {
		t.Fatal(sums, err)
	}
	if err := os.Rename(sums[0], filepath.Join(dir, layout, flowsProgFlows+"-0")); err != nil {
		t.Fatal(err)
	}
	if f, loaded = next(f); !loaded {
		t.Error("programs of another build go on")
	}
	counted(f)
	// A link that somebody else has put there is not taken for ours.
	if err := os.Rename(filepath.Join(dir, layout, "tcp_receive_reset"), filepath.Join(dir, layout, "tcp_send_reset")); err != nil {
		t.Fatal(err)
	}
	if f, loaded = next(f); !loaded {
		t.Error("links of other programs are gone on with")
	}
	counted(f)
	if err := f.Unpin(); err != nil {
		t.Error(err)
	}
}
