package guard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/scratch"
)

// asGeneration makes the test binary try every option on descriptor 3 and
// print, for each, the number of the error.
const asGeneration = "try-the-options"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == asGeneration {
		for _, try := range tries {
			fmt.Printf("%d ", errnoOf(try.do(3)))
		}
		return
	}
	need.RootForAll("the guard is a BPF program")
	os.Exit(m.Run())
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}

// Each option with what a socket without protection answers to it.
var tries = []struct {
	option Option
	do     func(fd int) error
	open   syscall.Errno
}{
	{ReusePort, setInt(unix.SO_REUSEPORT, 0), 0},
	{AttachBPF, setInt(unix.SO_ATTACH_BPF, -1), unix.EBADF}, // -1 is no program
	{AttachCBPF, func(fd int) error {
		first := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &first})
	}, 0},
	{AttachEBPF, setInt(unix.SO_ATTACH_REUSEPORT_EBPF, -1), unix.EBADF},
	{Detach, setInt(unix.SO_DETACH_REUSEPORT_BPF, 0), 0}, // what the one before the last attached
}

func setInt(option, value int) func(int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, value) }
}

func open(t *testing.T, cgroup, dir string) *Guard {
	t.Helper()
	g, err := Open(cgroup, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func protect(t *testing.T, g *Guard, fd int, slot uint8) {
	t.Helper()
	if err := g.Protect(fd, slot); err != nil {
		t.Fatal(err)
	}
}

// pair makes two listening sockets of one group.
func pair(t *testing.T) (a, b int) {
	t.Helper()
	a = listen(t, 0)
	sa, err := unix.Getsockname(a)
	if err != nil {
		t.Fatal(err)
	}
	return a, listen(t, sa.(*unix.SockaddrInet4).Port)
}

func listen(t *testing.T, port int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	err = errors.Join(setInt(unix.SO_REUSEPORT, 1)(fd),
		unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 16))
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// answers are the numbers of the errors that a process of this user, in this
// cgroup, gets for the tries; dir nil means the cgroup of the test.
func answers(t *testing.T, fd, uid int, dir *os.File) string {
	t.Helper()
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(dup), "socket")
	defer f.Close()
	cmd := exec.Command("/proc/self/exe", asGeneration)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	if dir != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func answer(errno func(i int) syscall.Errno) string {
	var all []string
	for i := range tries {
		all = append(all, strconv.Itoa(int(errno(i))))
	}
	return strings.Join(all, " ")
}

var (
	refused = answer(func(int) syscall.Errno { return unix.EPERM })
	granted = answer(func(i int) syscall.Errno { return tries[i].open })
)

func wantCounts(t *testing.T, g *Guard, slot uint8, each uint64) {
	t.Helper()
	got, err := g.Refused(slot)
	if err != nil {
		t.Fatal(err)
	}
	for o, n := range got {
		if n != each {
			t.Errorf("slot %d: %s refused %d times, want %d", slot, Option(o), n, each)
		}
	}
}

func TestRefusesWhatWouldHarmTheGroup(t *testing.T) {
	_, own := need.Cgroup2(t)
	g := open(t, own, "")
	a, b := pair(t)
	protect(t, g, a, 7)
	for i, uid := range []int{65534, 0} {
		if got := answers(t, a, uid, nil); got != refused {
			t.Errorf("user %d was answered %q, want %q", uid, got, refused)
		}
		wantCounts(t, g, 7, uint64(i+1))
	}
	// Its neighbour in the group is not protected: the guard knows sockets, not addresses.
	if got := answers(t, b, 65534, nil); got != granted {
		t.Errorf("an unprotected socket was answered %q, want %q", got, granted)
	}
	wantCounts(t, g, 7, 2)
	wantCounts(t, g, 0, 0)
}

func TestLetsTheRestPass(t *testing.T) {
	_, own := need.Cgroup2(t)
	g := open(t, own, "")
	a, _ := pair(t)
	protect(t, g, a, 7)
	for what, do := range map[string]func(int) error{
		"SO_REUSEPORT as it is":  setInt(unix.SO_REUSEPORT, 1),
		"another option":         setInt(unix.SO_KEEPALIVE, 1),
		"the same number, of IP": func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_UNICAST_IF, 0) },
		// Older kernels answer EFAULT unless the program says that it changed nothing.
		"an option longer than two pages": func(fd int) error {
			return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, strings.Repeat("\x01", 8192))
		},
	} {
		if err := do(a); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantCounts(t, g, 7, 0)
}

// An accepted connection belongs to the server: what it sets there is its own affair.
func TestConnectionsAreNotProtected(t *testing.T) {
	_, own := need.Cgroup2(t)
	g := open(t, own, "")
	a := listen(t, 0)
	protect(t, g, a, 7)
	sa, _ := unix.Getsockname(a)
	client, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, _, err := unix.Accept(a)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(conn)
	if err := setInt(unix.SO_REUSEPORT, 0)(conn); err != nil {
		t.Errorf("SO_REUSEPORT on an accepted connection: %v", err)
	}
	wantCounts(t, g, 7, 0)
}

// The cgroup that counts is the one in which the socket was made.
func TestTheMakersCgroupDecides(t *testing.T) {
	mount, own := need.Cgroup2(t)
	path := filepath.Join(mount, fmt.Sprintf("baton-guard-test-%d", os.Getpid()))
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	dir, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()

	a, _ := pair(t)
	callers := open(t, path, "")
	protect(t, callers, a, 7)
	if got := answers(t, a, 65534, dir); got != granted {
		t.Errorf("guarded from the caller's cgroup: %q, want %q", got, granted)
	}
	wantCounts(t, callers, 7, 0)

	if err := setInt(unix.SO_REUSEPORT, 1)(a); err != nil {
		t.Fatal(err)
	}
	makers := open(t, own, "")
	protect(t, makers, a, 7)
	if got := answers(t, a, 65534, dir); got != refused {
		t.Errorf("guarded from the maker's cgroup: %q, want %q", got, refused)
	}
	wantCounts(t, makers, 7, 1)
}

// A supervisor that dies leaves its sockets guarded, and the next one counts on.
func TestOutlivesItsProcess(t *testing.T) {
	_, own := need.Cgroup2(t)
	dir := scratch.Pins(t)
	first := open(t, own, dir)
	a, _ := pair(t)
	protect(t, first, a, 7)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if got := answers(t, a, 65534, nil); got != refused {
		t.Errorf("after its process has gone: %q, want %q", got, refused)
	}
	second := open(t, own, dir)
	wantCounts(t, second, 7, 1)
	if got := answers(t, a, 65534, nil); got != refused {
		t.Errorf("under its successor: %q, want %q", got, refused)
	}
	wantCounts(t, second, 7, 2) // once, not by two programs

	if err := errors.Join(second.Unpin(), second.Close()); err != nil {
		t.Fatal(err)
	}
	if got := answers(t, a, 65534, nil); got != granted {
		t.Errorf("after the end: %q, want %q", got, granted)
	}
}

func BenchmarkOthers(b *testing.B) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	b.Run("without", func(b *testing.B) {
		for b.Loop() {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
	})
	b.Run("with", func(b *testing.B) {
		_, own := need.Cgroup2(b)
		g, err := Open(own, "")
		if err != nil {
			b.Fatal(err)
		}
		defer g.Close()
		for b.Loop() {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
	})
}
