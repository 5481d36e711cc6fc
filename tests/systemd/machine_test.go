package systemd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/scratch"
)

const manager = "/lib/systemd/systemd"

// machine is a systemd that is PID 1 of namespaces of its own, in the test's network:
// as much of a host as a service sees. It ends with the test, and all that it runs.
type machine struct {
	t   *testing.T
	pid int // of systemd, as this process sees it
}

// boot starts a machine with units of deploy/systemd, and the binaries that are under test
// where those look for them.
func boot(t *testing.T, shipped ...string) *machine {
	t.Helper()
	need.Root(t, "it makes namespaces and mounts")
	_, err := os.Stat(manager)
	need.That(t, err == nil, manager+": apt install systemd (make test does)")
	_, own := need.Cgroup2(t)
	built, dir := node.Build(t), scratch.Dir(t)
	units := filepath.Join(dir, "units")
	if err := os.CopyFS(units, os.DirFS("testdata/units")); err != nil {
		t.Fatal(err)
	}
	for _, unit := range shipped {
		text, err := os.ReadFile(filepath.Join("../../deploy/systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(units, unit), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	group := filepath.Join(own, fmt.Sprintf("baton-systemd-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeGroups(t, group) })
	m := &machine{t: t}
	m.start(group, dir)
	m.eventually("systemd has started", func() bool {
		out, err := m.run("systemctl", "is-active", "multi-user.target", "systemd-journald.service")
		return err == nil && out == "active\nactive\n"
	})
	for _, binary := range []string{"baton", "baton-proxy"} {
		m.install(filepath.Join(built, binary))
	}
	return m
}

func (m *machine) start(group, dir string) {
	m.t.Helper()
	in, err := os.Open(group)
	if err != nil {
		m.t.Fatal(err)
	}
	defer in.Close()
	// The namespace of control groups is made by who is in the group already.
	cmd := exec.Command("unshare", "--cgroup", "sh", "testdata/boot.sh", dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UseCgroupFD: true, CgroupFD: int(in.Fd()), Pdeathsig: syscall.SIGKILL,
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the signal comes when this thread ends
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		m.t.Fatal(err)
	}
	m.pid = cmd.Process.Pid
	m.t.Cleanup(func() {
		if m.t.Failed() {
			log, _ := m.run("journalctl", "--no-pager", "--output=cat", "--lines=100")
			m.t.Logf("the journal ends with:\n%s", log)
		}
		cmd.Process.Kill() // and the kernel whom it leaves behind
		<-ended
		if said.Len() > 0 {
			m.t.Logf("the machine said: %s", said.String())
		}
	})
}

// removeGroups removes a control group and those in it, which are empty.
func removeGroups(t *testing.T, group string) {
	node.Eventually(t, "the control groups are empty", func() bool {
		var all []string
		filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for i := range all {
			os.Remove(all[len(all)-1-i])
		}
		_, err := os.Stat(group)
		return os.IsNotExist(err)
	})
}

// run runs a command there and returns what it wrote.
func (m *machine) run(args ...string) (string, error) {
	all := append([]string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--wdns=/", "--"}, args...)
	cmd := exec.Command("nsenter", all...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_UNIT_PATH=/etc/units", "SYSTEMD_PAGER="}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// does is run for what has to succeed.
func (m *machine) does(args ...string) string {
	m.t.Helper()
	out, err := m.run(args...)
	if err != nil {
		m.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// property is one of a unit's, as systemctl show says it.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.does("systemctl", "show", "--property="+name, "--value", unit))
}

// path is where this process finds a file of the machine's.
func (m *machine) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, name) }

// write replaces a file, or makes it.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := m.path(name)
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		m.t.Fatal(err)
	}
}

// install puts a binary in /usr/local/bin, in the place of one that may be running.
func (m *machine) install(from string) {
	m.t.Helper()
	binary, err := os.ReadFile(from)
	if err != nil {
		m.t.Fatal(err)
	}
	to := m.path("/usr/local/bin/" + filepath.Base(from))
	if err := os.WriteFile(to+".new", binary, 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(to+".new", to); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) eventually(what string, done func() bool) {
	m.t.Helper()
	node.Eventually(m.t, what, done)
}
