package supervisor

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/cgroup"
)

// What a generation may try by way of the file system and of processes, in
// place of its socket.
var processEscapes = map[string]escape{
	"write into the runtime directory": {func(_ int, given url.Values) error {
		return os.WriteFile(filepath.Join(given.Get("dir"), "mine"), nil, 0o644)
	}, unix.EACCES, uncounted, false},
	"write the state file": {func(_ int, given url.Values) error {
		return os.WriteFile(filepath.Join(given.Get("dir"), "state.json"), nil, 0o644)
	}, unix.EACCES, uncounted, false},
	"remove the pins": {func(_ int, given url.Values) error {
		return os.Remove(filepath.Join(given.Get("pins"), "shift"))
	}, unix.EACCES, uncounted, false},
	"read another generation's memory": {func(_ int, given url.Values) error {
		_, err := os.Open(fmt.Sprintf("/proc/%s/mem", given.Get("victim")))
		return err
	}, unix.EACCES, uncounted, false},
	"open what another generation has open": {func(_ int, given url.Values) error {
		_, err := os.Open(fmt.Sprintf("/proc/%s/fd/3", given.Get("victim")))
		return err
	}, unix.EACCES, uncounted, false},
	"kill another generation's control group": {func(_ int, given url.Values) error {
		return writeInGroup(given, "cgroup.kill", "1")
	}, unix.EACCES, uncounted, false},
	"freeze another generation's control group": {func(_ int, given url.Values) error {
		return writeInGroup(given, "cgroup.freeze", "1")
	}, unix.EACCES, uncounted, false},
	"take another generation's descriptors": {func(_ int, given url.Values) error {
		return unix.Prlimit(number(given, "victim"), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 5, Max: 5}, nil)
	}, unix.EPERM, uncounted, false},
	"limit another generation's time": {func(_ int, given url.Values) error {
		return unix.Prlimit(number(given, "victim"), unix.RLIMIT_CPU, &unix.Rlimit{Cur: 1, Max: 1}, nil)
	}, unix.EPERM, uncounted, false},
	"read another generation's limits": {func(_ int, given url.Values) error {
		return unix.Prlimit(number(given, "victim"), unix.RLIMIT_NOFILE, nil, new(unix.Rlimit))
	}, 0, uncounted, false},
	"set a limit of its own": {func(int, url.Values) error {
		var own unix.Rlimit
		err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &own)
		return errors.Join(err, unix.Prlimit(0, unix.RLIMIT_NOFILE, &own, nil), unix.Prlimit(os.Getpid(), unix.RLIMIT_NOFILE, &own, nil))
	}, 0, uncounted, false},
	"leave its control group": {func(_ int, given url.Values) error {
		return writeInGroup(given, "cgroup.procs", strconv.Itoa(os.Getpid()))
	}, unix.EACCES, uncounted, false},
}

// writeInGroup writes a file of the victim's control group.
func writeInGroup(given url.Values, file, text string) error {
	mounts, err1 := os.ReadFile("/proc/self/mountinfo")
	group, err2 := os.ReadFile(fmt.Sprintf("/proc/%s/cgroup", given.Get("victim")))
	dir, err3 := cgroup.Own(string(mounts), string(group))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

func init() { maps.Copy(escapes, processEscapes) }

// Two generations live; one tries everything that is not about its socket.
func TestHostileProcess(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Minute }), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	victims := n.keepAlive(t, "1", 2)
	hostile := n.keepAlive(t, "2", 1)[0]
	for name, e := range processEscapes {
		if got := hostile.tryEscape(t, n, name); got != e.want {
			t.Errorf("%s: answered %v, want %v", name, got, e.want)
		}
		hostile = n.keepAlive(t, "2", 1)[0] // the connection that asked may be busy
	}
	for i, v := range victims {
		if got, err := v.get("/"); err != nil || got != "1" {
			t.Errorf("connection %d of the other generation: %q, %v", i, got, err)
		}
	}
	if res, err := n.s.Rollback(t.Context()); err != nil || res.Outcome != RolledBack {
		t.Errorf("roll back: %+v, %v", res, err)
	}
	<-r.done
}

// leaveChild starts a process that has the generation's socket and would outlive it.
func leaveChild(fd int, given url.Values) error {
	again, err := unix.Dup(fd)
	if err != nil {
		return err
	}
	socket := os.NewFile(uintptr(again), "socket")
	defer socket.Close()
	cmd := exec.Command("sleep", given.Get("marker"))
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// A child of a generation that stays when it has ended holds its socket, and
// with it whatever is queued there. It ends with the generation.
func TestChildOfAGenerationEndsWithIt(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	if got := n.keepAlive(t, "1", 1)[0].tryEscape(t, n, "leave a child"); got != 0 {
		t.Fatalf("it has no child: %v", got)
	}
	children := func() (pids []string) {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			text, _ := os.ReadFile(path) // it may have ended
			if string(text) == "sleep\x00"+childMarker(n)+"\x00" {
				pids = append(pids, path)
			}
		}
		return pids
	}
	eventually(t, "the child runs", func() bool { return len(children()) == 1 })
	if res := n.release(n.like("serve"), Request{}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	eventually(t, "generation 1 has ended", func() bool { return n.generation(1) == nil })
	eventually(t, "its child has too", func() bool { return len(children()) == 0 })
	for range 40 {
		if got, err := n.get("/"); err != nil || got != "2" {
			t.Errorf("afterwards: %q, %v", got, err)
		}
	}
}

// childMarker is how long the child would sleep, in seconds: a number by which it is known.
func childMarker(n *node) string {
	_, port, _ := strings.Cut(n.addr, ":")
	return "9" + port
}
