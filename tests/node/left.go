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
	// As the supervisor names them: after the directory, without slashes.
	instance := strings.ReplaceAll(strings.Trim(runtimeDir, "/"), "/", "-")
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

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
