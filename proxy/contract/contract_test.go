package contract

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the child that descriptors are passed to.
func TestMain(m *testing.M) {
	switch os.Getenv("CONTRACT_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "right":
		os.Setenv(EnvListenPID, strconv.Itoa(os.Getpid()))
	}
	sockets, err := Sockets()
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	for name, workers := range sockets.TCP {
		for _, ln := range workers {
			fmt.Println(name, ln.Addr())
		}
	}
	for name, workers := range sockets.UDP {
		for _, c := range workers {
			fmt.Println(name+UDPSuffix, c.LocalAddr())
		}
	}
	if _, set := os.LookupEnv(EnvListenFDs); set {
		fmt.Println("the environment still has", EnvListenFDs)
	}
	for fd := FirstFD; fd < 50; fd++ {
		link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
		flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if strings.HasPrefix(link, "socket:") && flags&unix.FD_CLOEXEC == 0 {
			fmt.Println("a child would inherit", fd)
		}
	}
}

// child runs the test binary with files from descriptor 3 and returns its lines, sorted.
func child(t *testing.T, files []*os.File, env ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = env
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return sorted(string(out))
}

func sorted(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// socket returns a listening socket and its address.
func socket(t *testing.T, nonblocking bool) (*os.File, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.SetNonblock(int(f.Fd()), nonblocking); err != nil {
		t.Fatal(err)
	}
	return f, ln.Addr().String()
}

func TestSockets(t *testing.T) {
	a, addrA := socket(t, true)
	b, addrB := socket(t, false)
	c, addrC := socket(t, true)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	u, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	tests := []struct {
		name  string
		files []*os.File
		env   string
		want  string
	}{
		{"a name for each worker", []*os.File{a, b, c}, "LISTEN_FDS=3 LISTEN_FDNAMES=web:raw:web",
			"raw " + addrB + "\nweb " + addrA + "\nweb " + addrC},
		{"none passed", nil, "", ""},
		{"another process's", []*os.File{a}, "CONTRACT_TEST_CHILD=wrong LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=web", "error: LISTEN_PID is"},
		{"no number", []*os.File{a}, "LISTEN_FDS=many LISTEN_FDNAMES=web", "error: LISTEN_FDS is"},
		{"too few names", []*os.File{a, b}, "LISTEN_FDS=2 LISTEN_FDNAMES=web", "error: LISTEN_FDNAMES has 1 names for 2 descriptors"},
		{"too few descriptors", []*os.File{a}, "LISTEN_FDS=9 LISTEN_FDNAMES=a:b:c:d:e:f:g:h:i", "not a socket"},
		{"a file", []*os.File{file}, "LISTEN_FDS=1 LISTEN_FDNAMES=web", "error: descriptor 3 (web): not a socket"},
		{"a UDP socket", []*os.File{u}, "LISTEN_FDS=1 LISTEN_FDNAMES=web", "error: descriptor 3 (web): not a listening socket"},
		{"both kinds", []*os.File{a, u}, "LISTEN_FDS=2 LISTEN_FDNAMES=web:web.udp", "web " + addrA + "\nweb.udp " + udp.LocalAddr().String()},
		{"a TCP socket for datagrams", []*os.File{a}, "LISTEN_FDS=1 LISTEN_FDNAMES=web.udp", "error: descriptor 3 (web.udp): not a UDP socket"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			env := append([]string{"CONTRACT_TEST_CHILD=right", "GORACE=atexit_sleep_ms=0"}, strings.Fields(test.env)...)
			got := child(t, test.files, env...)
			if strings.Contains(test.want, "error") || strings.HasPrefix(test.want, "not") {
				if !strings.Contains(got, test.want) || !strings.Contains(got, "error:") {
					t.Errorf("got %q, want %q in it", got, test.want)
				}
			} else if got != sorted(test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@baton-contract-test-" + strconv.Itoa(os.Getpid())} {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv(EnvNotifySocket, name)
		if err := Notify(t.Context(), "READY=1", "STATUS=serving"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := conn.Read(b)
		if got := string(b[:n]); got != "READY=1\nSTATUS=serving" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		for _, bad := range []string{"STATUS=a\nREADY=1", "ready"} {
			if Notify(t.Context(), bad) == nil {
				t.Errorf("%q was accepted", bad)
			}
		}
	}
	for name, ok := range map[string]bool{"": true, "relative": false, "/nowhere/notify": false} {
		t.Setenv(EnvNotifySocket, name)
		if err := Notify(t.Context(), "READY=1"); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A manager that does not read: who notifies waits, and no longer than he says.
func TestNotifyIsNotReadByAnybody(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv(EnvNotifySocket, name)
	for range 1 << 16 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := Notify(ctx, "STATUS=serving")
		cancel()
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("its queue is never full")
}

func TestReadConfig(t *testing.T) {
	fd, err := unix.MemfdCreate("config", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte("node: {}")); err != nil { // the offset is now at the end
		t.Fatal(err)
	}
	t.Setenv(EnvConfigFD, strconv.Itoa(fd))
	if text, err := ReadConfig(); err != nil || string(text) != "node: {}" {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := ReadConfig(); text != nil || err != nil {
		t.Errorf("a second time: %q, %v", text, err)
	}
	for _, bad := range []string{"x", "0", "999"} {
		t.Setenv(EnvConfigFD, bad)
		if _, err := ReadConfig(); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestGenerationID(t *testing.T) {
	for value, want := range map[string]uint64{"": 0, "7": 7, "0": 0, "-1": 0, "x": 0} {
		t.Setenv(EnvGenerationID, value)
		got, err := GenerationID()
		if bad := value != "" && value != "7"; got != want || (err != nil) != bad {
			t.Errorf("%q: %d, %v", value, got, err)
		}
	}
}
