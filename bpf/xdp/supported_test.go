package xdp

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

func TestSupported(t *testing.T) {
	need.Root(t, "loading BPF programs")
	need.BPFFS(t)
	before := map[string]bool{} // what others have there is theirs
	made := func() (new []string) {
		all, err := filepath.Glob("/sys/fs/bpf/baton-doctor-*")
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range all {
			if !before[dir] {
				new = append(new, dir)
			}
			before[dir] = true
		}
		return new
	}
	made()
	if err := Supported(); err != nil {
		t.Error(err)
	}
	if left := made(); len(left) > 0 {
		t.Errorf("it has left %v", left)
	}
}

// What an older kernel refuses is told by its version, and nothing else is.
func TestOldKernelIsNamed(t *testing.T) {
	unknown := errors.New("unknown func bpf_loop#181")
	const old = "the balancer needs Linux 5.19 or later, and this is 5.15: "
	for _, test := range []struct {
		release string
		err     error
		want    string
	}{
		{"5.15.0-91-generic\n", unknown, old + unknown.Error()},
		{"5.15.0", unix.EACCES, old + unix.EACCES.Error()},
		{"5.15.0", os.NewSyscallError("bpf", unix.EPERM), "bpf: operation not permitted"},
		{"5.19.0", unknown, unknown.Error()},
		{"6.1.2-x", unknown, unknown.Error()},
		{"next", unknown, unknown.Error()},
	} {
		got := explainedFor(test.err, test.release)
		if got.Error() != test.want || !errors.Is(got, test.err) {
			t.Errorf("%v on %s: %v, want %s", test.err, test.release, got, test.want)
		}
	}
}
