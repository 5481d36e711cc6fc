package notify

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sayReady names the socket that this test binary, as a child, says READY=1 to.
const sayReady = "BATON_TEST_SAY_READY"

func listen(t *testing.T) *Socket {
	t.Helper()
	s, err := Listen(filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func send(t *testing.T, path, text string, oob []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(fd, []byte(text), oob, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatal(err)
	}
}

func TestReceive(t *testing.T) {
	s := listen(t)
	if info, err := os.Stat(s.Path()); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v: any user must be able to send", info.Mode(), err)
	}
	send(t, s.Path(), "READY=1\nSTATUS=a=b\nnonsense\n", nil)
	m, err := s.Receive()
	if err != nil || m.PID != os.Getpid() {
		t.Fatalf("%+v, %v", m, err)
	}
	if len(m.Fields) != 2 || m.Fields["READY"] != "1" || m.Fields["STATUS"] != "a=b" {
		t.Errorf("fields %v", m.Fields)
	}
	if m.CgroupID == 0 {
		t.Error("the kernel did not tell the sender's cgroup")
	}
}

// A helper that says READY=1 for a server has often ended, and been waited for,
// before its word is read.
func TestCgroupOfASenderThatHasGone(t *testing.T) {
	if path := os.Getenv(sayReady); path != "" {
		send(t, path, "READY=1", nil)
		return
	}
	s := listen(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCgroupOfASenderThatHasGone$")
	cmd.Env = append(os.Environ(), sayReady+"="+s.Path())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m, err := s.Receive()
	if err != nil || m.PID != cmd.Process.Pid {
		t.Fatalf("%+v, %v", m, err)
	}
	if m.CgroupID == 0 {
		t.Error("the kernel did not tell the cgroup of a sender that has ended")
	}
}

// A datagram may carry descriptors. Keeping them would be a leak that any user
// of the machine can cause.
func TestDescriptorsAreNotKept(t *testing.T) {
	s := listen(t)
	count := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := count()
	for range 10 {
		send(t, s.Path(), "READY=1", unix.UnixRights(0, 1, 2))
		if _, err := s.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// Sync returns only after what was sent before it has been handled.
func TestSync(t *testing.T) {
	s := listen(t)
	handled := 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := s.Receive(); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // a slow reader
			handled++
		}
	}()
	for range 20 {
		send(t, s.Path(), "STATUS=x", nil)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if handled != 20 { // ordered by Sync: the race detector agrees
		t.Errorf("%d of 20 were handled", handled)
	}
	s.Close()
	<-ended
	if _, err := os.Stat(s.Path()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\n"), []byte{})
	f.Add([]byte("="), []byte{16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text, oob []byte) {
		if len(oob) > 0 {
			// Descriptor numbers out of the air could be this process's own.
			return
		}
		if _, ok := parse(text, oob); ok {
			t.Error("believed without credentials")
		}
	})
}
