package supervisor

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/guard"
)

// An escape is what a generation may try to get at flows that are not its own,
// with what it has: one listening socket, and no privilege.
type escape struct {
	try func(fd int, given url.Values) error
	// want is what the kernel must answer. Zero: it is allowed, and may harm
	// nobody but the one who does it.
	want syscall.Errno
	// refused is the option that the guard must have counted; -1: none.
	refused guard.Option
	// leaves says that the generation gets no flows after it.
	leaves bool
}

const uncounted = guard.Option(-1)

var escapes = map[string]escape{
	"take the program off the group": {sockopt(unix.SO_DETACH_REUSEPORT_BPF, 0), unix.EPERM, guard.Detach, false},
	"give the group a program of its own": {func(fd int, _ url.Values) error {
		first := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &unix.SockFprog{Len: 1, Filter: &first})
	}, unix.EPERM, guard.AttachCBPF, false},
	"give the group a loaded program": {sockopt(unix.SO_ATTACH_REUSEPORT_EBPF, 0), unix.EPERM, guard.AttachEBPF, false},
	"put a loaded filter on":          {sockopt(unix.SO_ATTACH_BPF, 0), unix.EPERM, guard.AttachBPF, false},
	"leave the group":                 {sockopt(unix.SO_REUSEPORT, 0), unix.EPERM, guard.ReusePort, false},
	"take all memory for receiving":   {sockopt(unix.SO_RCVBUFFORCE, 1<<30), unix.EPERM, uncounted, false},
	"bind another socket beside it": {func(fd int, _ url.Values) error {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		return bindBeside(sa)
	}, unix.EADDRINUSE, uncounted, false},
	"bind another socket above it": {func(fd int, _ url.Values) error {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		return bindBeside(&unix.SockaddrInet4{Port: sa.(*unix.SockaddrInet4).Port})
	}, unix.EADDRINUSE, uncounted, false},
	// The user of a socket decides who may bind beside it.
	"become the owner of its socket": {func(fd int, _ url.Values) error { return unix.Fchown(fd, os.Getuid(), -1) }, unix.EPERM, uncounted, false},
	"kill another generation": {func(_ int, given url.Values) error {
		return syscall.Kill(number(given, "victim"), syscall.SIGKILL)
	}, unix.EPERM, uncounted, false},
	"stop another generation": {func(_ int, given url.Values) error {
		fd, err := unix.PidfdOpen(number(given, "victim"), 0)
		if err != nil {
			return err
		}
		return unix.PidfdSendSignal(fd, syscall.SIGSTOP, nil, 0)
	}, unix.EPERM, uncounted, false},
	"trace another generation": {func(_ int, given url.Values) error {
		return syscall.PtraceAttach(number(given, "victim"))
	}, unix.EPERM, uncounted, false},
	"take another generation's socket": {func(_ int, given url.Values) error {
		fd, err := unix.PidfdOpen(number(given, "victim"), 0)
		if err != nil {
			return err
		}
		_, err = unix.PidfdGetfd(fd, 3, 0)
		return err
	}, unix.EPERM, uncounted, false},
	"kill the supervisor": {func(int, url.Values) error { return syscall.Kill(os.Getppid(), syscall.SIGKILL) }, unix.EPERM, uncounted, false},
	"open the pinned shift": {func(_ int, given url.Values) error {
		_, err := os.ReadFile(given.Get("pins") + "/shift")
		return err
	}, unix.EACCES, uncounted, false},
	"read the state file": {func(_ int, given url.Values) error {
		_, err := os.ReadFile(given.Get("dir") + "/state.json")
		return err
	}, unix.EACCES, uncounted, false},
	"replace the notify socket": {func(_ int, given url.Values) error { return os.Remove(given.Get("dir") + "/notify") }, unix.EACCES, uncounted, false},

	"shrink its accept queue":     {func(fd int, _ url.Values) error { return unix.Listen(fd, 0) }, 0, uncounted, false},
	"be the socket of one CPU":    {sockopt(unix.SO_INCOMING_CPU, 0), 0, uncounted, false},
	"be the socket of one device": {func(fd int, _ url.Values) error { return unix.BindToDevice(fd, "lo") }, 0, uncounted, false},
	"shut its socket down":        {func(fd int, _ url.Values) error { return unix.Shutdown(fd, unix.SHUT_RD) }, 0, uncounted, true},
	"disconnect its socket":       {disconnect, 0, uncounted, true},
	"shut down and listen anew": {func(fd int, _ url.Values) error {
		return errors.Join(unix.Shutdown(fd, unix.SHUT_RD), unix.Listen(fd, 9))
	}, 0, uncounted, true},
	"disconnect and leave a group": {func(fd int, v url.Values) error { disconnect(fd, v); return sockopt(unix.SO_REUSEPORT, 0)(fd, v) }, unix.EPERM, guard.ReusePort, true},
}

func sockopt(option, value int) func(int, url.Values) error {
	return func(fd int, _ url.Values) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, value) }
}

func number(given url.Values, key string) int {
	n, _ := strconv.Atoi(given.Get(key))
	return n
}

func bindBeside(sa unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	err = errors.Join(sockopt(unix.SO_REUSEPORT, 1)(fd, nil), sockopt(unix.SO_REUSEADDR, 1)(fd, nil))
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	return unix.Listen(fd, 100)
}

// disconnect is connect with AF_UNSPEC: the socket listens no more.
func disconnect(fd int, _ url.Values) error {
	var sa unix.RawSockaddr
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return errno
	}
	return nil
}

// closeSocket closes what the runtime holds: the number then names another file.
func closeSocket(fd int, _ url.Values) error {
	null, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return unix.Dup3(null, fd, unix.O_CLOEXEC)
}

// sayReady claims to be ready in the name of whoever is starting.
func sayReady(_ int, given url.Values) error {
	c, err := net.Dial("unixgram", given.Get("dir")+"/notify")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "READY=1\nMAINPID=%s\nBATON_GENERATION_ID=2", given.Get("candidate"))
	return err
}

// tryEscape runs in the generation. The answer goes where the test reads it, for
// the connection that asked may not live to carry it.
func tryEscape(name string, listeners []net.Listener, given url.Values) {
	raw, err := listeners[0].(*net.TCPListener).SyscallConn()
	if err != nil {
		return
	}
	try := escapes[name].try
	switch name {
	case "close":
		try = closeSocket
	case "ready":
		try = sayReady
	case "leave a child":
		try = leaveChild
	}
	raw.Control(func(fd uintptr) { err = try(int(fd), given) })
	var errno syscall.Errno
	errors.As(err, &errno)
	f, err := os.OpenFile(given.Get("answer"), os.O_WRONLY, 0)
	if err == nil {
		fmt.Fprintf(f, "%d\n", errno)
		f.Close()
	}
}
