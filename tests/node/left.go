package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/tests/need"
)

// WantNothingLeft fails the test if the supervisor of a runtime directory, which
// has ended, has left something in the kernel. It is taken away: generations
// that live on are killed, and pins removed.
func WantNothingLeft(t testing.TB, runtimeDir string) {
	t.Helper()
	_, own := need.Cgroup2(t)
	instance := instanceOf(runtimeDir)
	groups := own + "/baton-" + instance + "-*"
	for _, kill := range glob(t, groups+"/gen-*/cgroup.kill") {
		os.WriteFile(kill, []byte("1"), 0)
	}
	for _, pattern := range []string{"/sys/fs/bpf/baton/" + instance + "-*", groups, filepath.Join(runtimeDir, "*.sock")} {
		for _, path := range glob(t, pattern) {
			t.Errorf("%s was left", path)
			os.RemoveAll(path)
		}
	}
}

// Unpin makes the next supervisor of a runtime directory find what it would without a
// BPF file system.
func Unpin(t testing.TB, runtimeDir string) {
	t.Helper()
	if err := os.RemoveAll(Pins(t, runtimeDir)); err != nil {
		t.Fatal(err)
	}
}

// Pins is the directory in the BPF file system of who works in a runtime directory.
func Pins(t testing.TB, runtimeDir string) string {
	t.Helper()
	pins := glob(t, "/sys/fs/bpf/baton/"+instanceOf(runtimeDir)+"-*")
	if len(pins) != 1 {
		t.Fatalf("pinned for %s: %v", runtimeDir, pins)
	}
	return pins[0]
}

// instanceOf is as the supervisor names things: after the directory, without slashes.
func instanceOf(runtimeDir string) string {
	return strings.ReplaceAll(strings.Trim(runtimeDir, "/"), "/", "-")
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
