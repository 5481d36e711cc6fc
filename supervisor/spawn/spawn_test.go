package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

// The test binary doubles as what is started: it tells what it finds.
func TestMain(m *testing.M) {
	if os.Getenv("SPAWN_TEST_CHILD") != "" {
		status, _ := os.ReadFile("/proc/self/status")
		fmt.Printf("%sargs:\t%q\npid-matches:\t%t\n", status, os.Args, os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()))
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
			fmt.Printf("fd %s:\t%s\n", fd.Name(), to)
		}
		return
	}
	need.RootForAll("changing users")
	os.Exit(m.Run())
}

func open(t *testing.T, path string) *Binary {
	t.Helper()
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func nobody(t *testing.T) Account {
	t.Helper()
	a, err := LookUpAccount("nobody")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A generation has its user, no capability, no way to get one, and of the
// supervisor's descriptors those it was given and no other.
func TestWhatAGenerationHas(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, account := range []Account{nobody(t), {0, 0}} {
		passed, err := os.Open("/etc/hostname")
		if err != nil {
			t.Fatal(err)
		}
		defer passed.Close()
		out, err := Run(t.Context(), Options{
			Binary: open(t, exe), Args: []string{"one", "two"}, Account: account,
			Env: []string{"SPAWN_TEST_CHILD=1"}, Files: []int{int(passed.Fd())},
		})
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		ids := fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", account.UID)
		for _, want := range []string{
			"\nUid:\t" + ids, "\nCapInh:\t0000000000000000", "\nCapPrm:\t0000000000000000",
			"\nCapEff:\t0000000000000000", "\nCapBnd:\t0000000000000000", "\nCapAmb:\t0000000000000000",
			"\nNoNewPrivs:\t1", "pid-matches:\ttrue", `"one" "two"]`, "fd 3:\t/etc/hostname",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("as user %d: no %q in:\n%s", account.UID, want, out)
			}
		}
		if strings.Contains(out, filepath.Base(exe)+"\n") && strings.Contains(out, "fd 4:\t"+exe) {
			t.Errorf("the binary's own descriptor leaked:\n%s", out)
		}
	}
}

// Where a process cannot be born in a group, for a filter of system calls that refuses
// clone3(2), it is there before the server is executed.
func TestGroupWithoutClone3(t *testing.T) {
	_, own := need.Cgroup2(t)
	dir := filepath.Join(own, fmt.Sprintf("baton-spawn-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	defer func() { forkExec = syscall.ForkExec }()
	refused := 0
	forkExec = func(path string, argv []string, attr *syscall.ProcAttr) (int, error) {
		if attr.Sys.UseCgroupFD {
			refused++
			return 0, syscall.ENOSYS
		}
		return syscall.ForkExec(path, argv, attr)
	}
	path := filepath.Join(t.TempDir(), "server")
	script(t, path, "cat /proc/self/cgroup")
	out, err := Run(t.Context(), Options{Binary: open(t, path), Account: Account{0, 0}, Cgroup: group})
	if err != nil || refused != 1 || !strings.Contains(out, "/"+filepath.Base(dir)+"\n") {
		t.Errorf("%v, refused %d times: %s", err, refused, out)
	}
}

// The binary is what was opened, not what its path names later.
func TestBinaryIsOpenedOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "server")
	script(t, path, "echo first")
	b := open(t, path)
	script(t, path+".new", "echo second")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	out, err := Run(t.Context(), Options{Binary: b, Account: Account{0, 0}})
	if err != nil || out != "first\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func script(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestRunTellsHowItEnded(t *testing.T) {
	dir := t.TempDir()
	for body, want := range map[string]string{"echo no >&2; exit 3": "exit status 3", "kill -9 $$": "killed by killed"} {
		path := filepath.Join(dir, "s")
		script(t, path, body)
		if _, err := Run(t.Context(), Options{Binary: open(t, path), Account: Account{0, 0}}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", body, err, want)
		}
	}
	path := filepath.Join(dir, "hangs")
	script(t, path, "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, Options{Binary: open(t, path), Account: Account{0, 0}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a check that hangs: %v", err)
	}
}

func TestWhyABinaryDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The head of an ELF file for AArch64, enough for the kernel to refuse it.
	foreign := write("foreign", append([]byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00\x01\x00\x00\x00"), append(make([]byte, 28), 64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0)...))
	for path, want := range map[string]string{
		foreign:                               "is built for aarch64, this machine is " + runtime.GOARCH,
		write("text", []byte("not a binary")): "is neither an ELF binary nor a script",
		write("nowhere", []byte("#!/no/such/shell\n")): "no such file or directory",
	} {
		_, err := Start(Options{Binary: open(t, path), Account: nobody(t)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", filepath.Base(path), err, want)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"no-such-binary-anywhere": "neither beside baton nor in PATH",
		dir + "/missing":          "no such file",
		dir:                       "not an executable file",
		plain:                     "not an executable file",
	} {
		if _, err := Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if b := open(t, "sh"); b.Path != sh {
		t.Errorf("sh is %s, want %s", b.Path, sh)
	}
}

func TestLookUpAccount(t *testing.T) {
	if a, err := LookUpAccount("0"); err != nil || a != (Account{0, 0}) {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := LookUpAccount("no-such-user"); err == nil || !strings.Contains(err.Error(), "unknown to this host") {
		t.Errorf("%v", err)
	}
}

// Nobody runs who is not on record: the server is executed after Record, and not at
// all if that fails. What a supervisor's death does to the shim is the same as its
// closing the socket.
func TestOnRecordBeforeItRuns(t *testing.T) {
	begun := filepath.Join(t.TempDir(), "begun")
	o := Options{Binary: open(t, "/bin/sh"), Args: []string{"-c", "echo >" + begun}, Account: Account{0, 0}}
	refused := errors.New("refused")
	var pid int
	o.Record = func(p *Process) error {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID)); err != nil || string(name) == "sh\n" {
			t.Errorf("process %d is %q: %v", p.PID, name, err)
		}
		pid = p.PID
		return refused
	}
	if _, err := Start(o); !errors.Is(err, refused) {
		t.Errorf("start: %v", err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process %d is there: %v", pid, err)
	}
	if _, err := os.Stat(begun); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a server ran without a record: %v", err)
	}
	o.Record = func(*Process) error { return nil }
	if out, err := Run(t.Context(), o); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(begun); err != nil {
		t.Errorf("no server ran: %v", err)
	}
}

// A binary that is overwritten where it lies is not what was opened; one in whose
// place another was put is. A second handle knows too, and so does one that somebody
// else has opened, by its stamp.
func TestIntact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "#!/bin/sh\n")
	b := open(t, path)
	second, err := b.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	write(path+".new", "#!/bin/false\n")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Intact(), second.Intact()); err != nil {
		t.Error(err)
	}

	replaced := open(t, path)
	write(path, "#!/bin/true, and more\n")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	others := From(path, fd, replaced.Stamp())
	defer others.Close()
	for name, b := range map[string]*Binary{"opened": replaced, "of another": others} {
		if err := b.Intact(); err == nil || !strings.Contains(err.Error(), "overwritten in place") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
