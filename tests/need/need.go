// Package need says what a test cannot do without. Where it is missing the test
// is skipped with a reason; as root, and with CI=true, a skip is a failure: what
// was left out there would be left out for good.
package need

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// strict reports whether nothing may be missing.
func strict() bool { return os.Geteuid() == 0 || os.Getenv("CI") == "true" }

// That skips the test unless it is there.
func That(t testing.TB, there bool, what string) {
	t.Helper()
	switch {
	case there:
	case strict():
		t.Fatalf("needs %s", what)
	default:
		t.Skipf("needs %s", what)
	}
}

// Root skips the test for other users. why is what takes privileges.
func Root(t testing.TB, why string) {
	t.Helper()
	That(t, os.Geteuid() == 0, "root: "+why)
}

// RootForAll is Root for a whole package, to be called in its TestMain: it ends
// the process.
func RootForAll(why string) {
	switch {
	case os.Geteuid() == 0:
	case strict():
		fmt.Println("FAIL: needs root:", why)
		os.Exit(1)
	default:
		fmt.Println("SKIP: needs root:", why)
		os.Exit(0)
	}
}

// Tool returns the path of a program by others, which a Debian package has.
func Tool(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	That(t, err == nil, name+": apt install "+pkg+" (make test does)")
	return path
}

// BPFFS needs the file system that pins live in.
func BPFFS(t testing.TB) {
	t.Helper()
	var fs unix.Statfs_t
	err := unix.Statfs("/sys/fs/bpf", &fs)
	That(t, err == nil && fs.Type == unix.BPF_FS_MAGIC, "a BPF file system on /sys/fs/bpf")
}

// Cgroup2 returns where the hierarchy is mounted, and this process's own group.
func Cgroup2(t testing.TB) (mount, own string) {
	t.Helper()
	mount, own, err := FindCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	That(t, own != "", "a cgroup2 hierarchy")
	return mount, own
}

// FindCgroup2 is Cgroup2 where there is no test. Nothing is found: both are empty.
func FindCgroup2() (mount, own string, err error) {
	mounts, err1 := os.ReadFile("/proc/self/mountinfo")
	groups, err2 := os.ReadFile("/proc/self/cgroup")
	if err := errors.Join(err1, err2); err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " - cgroup2 ") {
			mount = strings.Fields(line)[4]
		}
	}
	for line := range strings.Lines(string(groups)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && mount != "" {
			return mount, filepath.Join(mount, path), nil
		}
	}
	return "", "", nil
}
