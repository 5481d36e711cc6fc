package sockops

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/testnet"
)

// The test binary as other processes: the tests themselves, in a cgroup where
// nobody else makes sockets, and a client in a cgroup of its own.
const (
	asTests  = "BATON_TEST_SOCKOPS"
	asClient = "connect-and-copy"
)

// port is that of every server here.
const port = 7777

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asClient {
		if err := copyOver(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	need.RootForAll("sockops is attached to cgroups")
	if os.Getenv(asTests) != "" {
		os.Exit(m.Run())
	}
	os.Exit(inOwnCgroup())
}

// inOwnCgroup runs the tests as a child of this process in a group below its own.
func inOwnCgroup() int {
	_, own, err := need.FindCgroup2()
	if err == nil && own == "" {
		err = errors.New("FAIL: needs a cgroup2 hierarchy")
	}
	var dir *os.File
	if err == nil {
		dir, err = makeCgroup(own, fmt.Sprintf("sockops-test-%d", os.Getpid()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.Remove(dir.Name())
	defer dir.Close()
	runtime.LockOSThread() // the child is killed when the thread ends that has started it
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), asTests+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func makeCgroup(parent, name string) (*os.File, error) {
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// copyOver connects and copies its input there and what comes to its output. It
// ends when both have: the input ends with the process that runs the tests.
func copyOver(address string) error {
	c, err := net.DialTimeout("tcp", address, time.Minute)
	if err != nil {
		return err
	}
	fmt.Println("connected")
	go func() {
		io.Copy(c, os.Stdin)
		c.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// lab is a client's host and a node, and what passed between them.
type lab struct {
	t            testing.TB
	client, node *testnet.Host
	group        *os.File // of client processes
	programs     *Programs

	mu   sync.Mutex
	seen []testnet.Segment
	// box, if set, changes a segment on the way.
	box func(testnet.Segment)
}

// newLab opens the programs on the node and attaches the halves asked for.
func newLab(t *testing.T, o Options, serve, echo bool) *lab {
	t.Helper()
	l := &lab{t: t}
	l.client, l.node = testnet.Through(t, 0, l.pass, "client", "node")
	var err error
	if err = l.node.Do(func() error { l.programs, err = Open(o); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.programs.Unpin()
		l.programs.Close()
	})
	_, own := need.Cgroup2(t)
	if l.group, err = makeCgroup(own, "client"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.group.Close()
		if err := os.Remove(l.group.Name()); err != nil {
			t.Error(err)
		}
	})
	if serve {
		if err := l.programs.Serve(own); err != nil {
			t.Fatal(err)
		}
	}
	if echo {
		if err := l.programs.Echo(l.group); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func (l *lab) pass(_ *testnet.Host, packet []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := testnet.ParseSegment(append([]byte(nil), packet...)); ok {
		l.seen = append(l.seen, s)
		if mine, ok := testnet.ParseSegment(packet); ok && l.box != nil {
			l.box(mine)
		}
	}
	return packet
}

// onTheWay has a middlebox change segments from now on.
func (l *lab) onTheWay(box func(testnet.Segment)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.box = box
}

// segments are those seen so far, from the server or to it.
func (l *lab) segments(fromServer bool) (some []testnet.Segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.seen {
		if (s.From.Port() == port) == fromServer {
			some = append(some, s)
		}
	}
	return some
}

// tell makes a listening socket tell the number.
func (l *lab) tell(fd int) error { return l.programs.Tell(fd) }

// listen makes a listening socket on the node, with marks set before it listens.
func (l *lab) listen(addr netip.Addr, marks ...func(fd int) error) net.Listener {
	l.t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var errs []error
		c.Control(func(fd uintptr) {
			for _, mark := range marks {
				errs = append(errs, mark(int(fd)))
			}
		})
		return errors.Join(errs...)
	}}
	lc.SetMultipathTCP(false)
	var listener net.Listener
	err := l.node.Do(func() (err error) {
		listener, err = lc.Listen(l.t.Context(), "tcp", netip.AddrPortFrom(addr, port).String())
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close() })
	return listener
}

// dial connects a client's process and returns both ends. What is written to in
// goes over the connection, what comes is read from out.
func (l *lab) dial(listener net.Listener) (in io.WriteCloser, out io.Reader, conn net.Conn, wait func() error) {
	l.t.Helper()
	cmd := l.client.Command("/proc/self/exe", asClient, listener.Addr().String())
	exe, err := os.Executable() // nsenter has another /proc/self/exe
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Args[3] = exe
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(l.group.Fd())}
	in, err1 := cmd.StdinPipe()
	pipe, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		l.t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	var once sync.Once
	wait = func() (err error) {
		once.Do(func() {
			in.Close()
			err = cmd.Wait()
		})
		return err
	}
	l.t.Cleanup(func() {
		cmd.Process.Kill()
		wait()
	})
	reader := bufio.NewReader(pipe)
	if line, err := reader.ReadString('\n'); err != nil || line != "connected\n" {
		l.t.Fatalf("the client says %q, %v", line, err)
	}
	if conn, err = listener.Accept(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	return in, reader, conn, wait
}

// exchange moves size octets each way and closes the connection, the client first.
func (l *lab) exchange(listener net.Listener, size int) {
	l.t.Helper()
	in, out, conn, wait := l.dial(listener)
	conn.SetDeadline(time.Now().Add(time.Minute))
	var sending sync.WaitGroup
	sending.Go(func() { in.Write(make([]byte, size)) })
	sending.Go(func() { conn.Write(make([]byte, size)) })
	if n, err := io.CopyN(io.Discard, conn, int64(size)); err != nil {
		l.t.Fatalf("the server got %d octets of %d: %v", n, size, err)
	}
	if n, err := io.CopyN(io.Discard, out, int64(size)); err != nil {
		l.t.Fatalf("the client got %d octets of %d: %v", n, size, err)
	}
	sending.Wait()
	in.Close()
	if n, err := io.Copy(io.Discard, conn); n > 0 || err != nil {
		l.t.Errorf("after the end came %d octets, %v", n, err)
	}
	conn.Close()
	if err := wait(); err != nil {
		l.t.Errorf("the client: %v", err)
	}
}

// number is a server_id as it stands in network order.
func number(id uint32) string { return string(binary.BigEndian.AppendUint32(nil, id)) }

func (l *lab) wantCounts(want Counts) {
	l.t.Helper()
	got, err := l.programs.Counts()
	if err != nil {
		l.t.Fatal(err)
	}
	got[Echoed] = min(got[Echoed], 1) // how many headers there are is the kernel's choice
	for e := range got {
		if got[e] != want[e] {
			l.t.Errorf("%s is %d, want %d", Event(e), got[e], want[e])
		}
	}
}
