package ports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

// The test binary doubles as a server of another user.
func TestMain(m *testing.M) {
	if os.Getenv("PORTS_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	lc := net.ListenConfig{Control: setReusePort}
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	io.Copy(io.Discard, os.Stdin) // until the parent ends
}

func TestOverlap(t *testing.T) {
	for _, test := range []struct {
		a     string
		aDual bool
		b     string
		bDual bool
		want  bool
	}{
		{"127.0.0.1:80", false, "127.0.0.1:80", false, true},
		{"127.0.0.1:80", false, "127.0.0.1:81", false, false},
		{"127.0.0.1:80", false, "127.0.0.2:80", false, false},
		{"127.0.0.1:80", false, "0.0.0.0:80", false, true},
		{"127.0.0.1:80", false, "[::]:80", false, false},
		{"127.0.0.1:80", false, "[::]:80", true, true},
		{"127.0.0.1:80", false, "[::1]:80", true, false},
		{"0.0.0.0:80", false, "[::]:80", true, true},
		{"[::1]:80", false, "[::]:80", false, true},
		{"[::1]:80", false, "0.0.0.0:80", false, false},
		{"[::ffff:127.0.0.1]:80", false, "127.0.0.1:80", false, true},
		{"[fe80::1%2]:80", false, "[fe80::1%3]:80", false, false},
		{"[fe80::1%2]:80", false, "[fe80::1]:80", false, true},
	} {
		a, b := netip.MustParseAddrPort(test.a), netip.MustParseAddrPort(test.b)
		if got := Overlap(a, test.aDual, b, test.bDual); got != test.want {
			t.Errorf("Overlap(%s %t, %s %t) = %t", a, test.aDual, b, test.bDual, got)
		}
		if Overlap(a, test.aDual, b, test.bDual) != Overlap(b, test.bDual, a, test.aDual) {
			t.Errorf("Overlap(%s, %s) depends on the order", a, b)
		}
	}
}

func TestHoldersNamesSocketAndProcess(t *testing.T) {
	for _, test := range []struct {
		network, listen, ask string
		askDual, dual        bool
	}{
		{network: "tcp4", listen: "127.0.0.1:0", ask: "127.0.0.1"},
		{network: "tcp4", listen: "127.0.0.1:0", ask: "0.0.0.0"},
		{network: "tcp4", listen: "127.0.0.1:0", ask: "::", askDual: true},
		{network: "tcp4", listen: "0.0.0.0:0", ask: "127.0.0.1"},
		{network: "tcp6", listen: "[::1]:0", ask: "::"},
		{network: "tcp6", listen: "[::]:0", ask: "::1"},
		{network: "tcp", listen: "[::]:0", ask: "127.0.0.1", dual: true},
	} {
		t.Run(test.listen+" seen from "+test.ask, func(t *testing.T) {
			l := listen(t, test.network, test.listen, false)
			port := l.Addr().(*net.TCPAddr).AddrPort().Port()
			holders, err := Holders(netip.AddrPortFrom(netip.MustParseAddr(test.ask), port), test.askDual)
			if err != nil {
				t.Fatal(err)
			}
			h := one(t, holders, cookie(t, l))
			if h.DualStack != test.dual {
				t.Errorf("dual stack = %t, want %t", h.DualStack, test.dual)
			}
			if h.UID != uint32(os.Getuid()) {
				t.Errorf("uid = %d, want %d", h.UID, os.Getuid())
			}
			self := Process{PID: os.Getpid(), Comm: comm(os.Getpid())}
			if !slices.Equal(h.Processes, []Process{self}) {
				t.Errorf("processes = %v, want %v", h.Processes, self)
			}
		})
	}
}

// Servers written in Go listen with MPTCP unless told otherwise.
func TestHoldersSeesMultipath(t *testing.T) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	holders, err := Holders(l.Addr().(*net.TCPAddr).AddrPort(), false)
	if err != nil {
		t.Fatal(err)
	}
	if len(holders) != 1 || len(holders[0].Processes) != 1 || holders[0].Processes[0].PID != os.Getpid() {
		t.Errorf("holders = %+v, want this process alone", holders)
	}
}

func TestHoldersIgnoresOthers(t *testing.T) {
	l := listen(t, "tcp4", "127.0.0.1:0", false)
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, ask := range []string{"127.0.0.2", "::", "::1"} {
		holders, err := Holders(netip.AddrPortFrom(netip.MustParseAddr(ask), port), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range holders {
			if h.Cookie == cookie(t, l) {
				t.Errorf("%s counted as a holder of %s", l.Addr(), ask)
			}
		}
	}
}

func TestShares(t *testing.T) {
	for _, reusePort := range []bool{false, true} {
		for _, bound := range []struct{ network, address string }{
			{"tcp4", "127.0.0.1:0"}, {"tcp4", "0.0.0.0:0"}, {"tcp6", "[::1]:0"}, {"tcp6", "[::]:0"}, {"tcp", "[::]:0"},
		} {
			t.Run(fmt.Sprintf("%s/%s/%t", bound.network, bound.address, reusePort), func(t *testing.T) {
				l := listen(t, bound.network, bound.address, reusePort)
				h := holderOf(t, l)
				if got, err := h.Shares(); got != reusePort || err != nil {
					t.Errorf("Shares() = %t, %v, want %t", got, err, reusePort)
				}
				if err := Free(h.Address, h.DualStack); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("Free() = %v, want EADDRINUSE", err)
				}
			})
		}
	}
}

// A socket with SO_REUSEPORT lets in only sockets of its own user.
func TestSharesAsAnotherUser(t *testing.T) {
	need.Root(t, "another user makes a socket")
	const nobody = 65534
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PORTS_TEST_CHILD=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		cmd.Wait()
	}()
	var address string
	if _, err := fmt.Fscanln(stdout, &address); err != nil {
		t.Fatal(err)
	}
	holders, err := Holders(netip.MustParseAddrPort(address), false)
	if err != nil || len(holders) != 1 {
		t.Fatalf("holders = %+v, %v, want the child alone", holders, err)
	}
	h := holders[0]
	if h.UID != nobody || len(h.Processes) != 1 || h.Processes[0].PID != cmd.Process.Pid {
		t.Errorf("holder = %+v, want uid %d, pid %d", h, nobody, cmd.Process.Pid)
	}
	if ok, err := h.Shares(); !ok || err != nil {
		t.Errorf("Shares() = %t, %v, want true", ok, err)
	}
	h.UID = 0 // as root, the port looks taken
	if ok, err := h.Shares(); ok || err != nil {
		t.Errorf("as another user: Shares() = %t, %v, want false", ok, err)
	}
}

func TestProbesTakeNoConnection(t *testing.T) {
	l := listen(t, "tcp4", "127.0.0.1:0", true)
	h := holderOf(t, l)
	for range 100 {
		if ok, err := h.Shares(); !ok || err != nil {
			t.Fatalf("Shares() = %t, %v", ok, err)
		}
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
		c.Close()
	}
}

func TestFree(t *testing.T) {
	l := listen(t, "tcp4", "127.0.0.1:0", false)
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	if err := Free(addr, false); err != nil {
		t.Errorf("Free(%s) after its listener has gone: %v", addr, err)
	}
	if err := Free(netip.MustParseAddrPort("192.0.2.1:80"), false); !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EACCES) {
		t.Errorf("Free(address of no interface) = %v, want EADDRNOTAVAIL", err)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(make([]byte, answerLen-1))
	f.Add(make([]byte, answerLen))
	v6 := make([]byte, answerLen+8)
	v6[0], v6[answerLen], v6[answerLen+2], v6[answerLen+4] = unix.AF_INET6, 5, attrV6Only, 1
	f.Add(v6)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseAnswer(b)
		if err == nil && !h.Address.IsValid() {
			t.Errorf("parseAnswer(%x) = %+v", b, h)
		}
	})
}

func listen(t *testing.T, network, address string, reusePort bool) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	if reusePort {
		lc.Control = setReusePort
	}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func setReusePort(_, _ string, c syscall.RawConn) error {
	var err error
	controlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(controlErr, err)
}

func holderOf(t *testing.T, l net.Listener) Holder {
	t.Helper()
	holders, err := Holders(l.Addr().(*net.TCPAddr).AddrPort(), false)
	if err != nil {
		t.Fatal(err)
	}
	return one(t, holders, cookie(t, l))
}

func one(t *testing.T, holders []Holder, cookie uint64) Holder {
	t.Helper()
	i := slices.IndexFunc(holders, func(h Holder) bool { return h.Cookie == cookie })
	if i < 0 {
		t.Fatalf("holders = %+v, want one with cookie %d", holders, cookie)
	}
	return holders[i]
}

func cookie(t *testing.T, l net.Listener) uint64 {
	t.Helper()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cookie uint64
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cookie, sockErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	}); err != nil || sockErr != nil {
		t.Fatal(err, sockErr)
	}
	return cookie
}
