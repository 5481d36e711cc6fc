package keeper

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary doubles as a keeper that a service manager runs.
func TestMain(m *testing.M) {
	if path := os.Getenv("KEEPER_TEST_SERVE"); path != "" {
		storeTimeout, _ = time.ParseDuration(os.Getenv("KEEPER_TEST_TIMEOUT"))
		if err := ServeStored(path, func(err error) { fmt.Println("told:", err) }); err != nil {
			fmt.Println("ended:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// manager stands in for systemd: it runs a keeper, and has a store of descriptors as
// systemd 252 has it (service_add_fd_store, src/core/service.c). tests/systemd has the
// real one.
type manager struct {
	t      *testing.T
	dir    string
	conn   *net.UnixConn
	room   int
	keeper *exec.Cmd
	// patience is how long a keeper waits for its manager. Longer than in earnest, for the
	// machine may be busy.
	patience time.Duration

	mu    sync.Mutex // held by a test: the manager is busy
	names []string
	fds   []int
	ready int
	said  []string // by keepers
}

func manage(t *testing.T, room int, patience time.Duration) *manager {
	t.Helper()
	wasAnswer, wasAll, wasStart := answerTimeout, allTimeout, startTimeout
	t.Cleanup(func() { answerTimeout, allTimeout, startTimeout = wasAnswer, wasAll, wasStart })
	answerTimeout, allTimeout, startTimeout = time.Minute, time.Minute, time.Minute // the machine may be busy
	dir, err := os.MkdirTemp("", "keeper")                                          // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &manager{t: t, dir: dir, room: room, patience: patience}
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(m.read)
	t.Cleanup(func() {
		m.conn.Close()
		reading.Wait()
		closeAll(m.fds)
	})
	m.start()
	return m
}

// start runs a keeper with what is in the store, and returns when it is ready.
func (m *manager) start() {
	m.t.Helper()
	m.mu.Lock()
	was := m.ready
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = []string{
		"KEEPER_TEST_SERVE=" + Socket(m.dir), fmt.Sprint("KEEPER_TEST_TIMEOUT=", m.patience), "NOTIFY_SOCKET=" + filepath.Join(m.dir, "notify"),
		fmt.Sprint("LISTEN_FDS=", len(m.fds)), "LISTEN_FDNAMES=" + strings.Join(m.names, ":"),
	}
	for i, fd := range m.fds {
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		file := os.NewFile(uintptr(copied), m.names[i])
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	m.mu.Unlock()
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.keeper = cmd
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			m.mu.Lock()
			m.said = append(m.said, lines.Text())
			m.mu.Unlock()
		}
	}()
	m.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	m.eventually("the keeper is ready", func() bool { return m.ready > was })
}

func (m *manager) kill() {
	m.keeper.Process.Kill()
	m.keeper.Wait()
}

func (m *manager) connect() *Client {
	m.t.Helper()
	c, err := Connect(Socket(m.dir))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits; done is called with m.mu held.
func (m *manager) eventually(what string, done func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		is := done()
		m.mu.Unlock()
		if is {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("not within a minute: %s; the keeper said %q", what, m.said)
		}
	}
}

func (m *manager) read() {
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, k, _, _, err := m.conn.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		var fds []int
		if controls, err := unix.ParseSocketControlMessage(rights[:k]); err == nil {
			for _, c := range controls {
				more, _ := unix.ParseUnixRights(&c)
				fds = append(fds, more...)
			}
		}
		m.mu.Lock()
		m.take(string(text[:n]), fds)
		m.mu.Unlock()
	}
}

func (m *manager) take(text string, fds []int) {
	fields := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		name, value, _ := strings.Cut(line, "=")
		fields[name] = value
	}
	switch {
	case fields["READY"] == "1":
		m.ready++
	case fields["FDSTOREREMOVE"] == "1":
		for i := len(m.fds) - 1; i >= 0; i-- {
			if m.names[i] == fields["FDNAME"] {
				unix.Close(m.fds[i])
				m.names, m.fds = append(m.names[:i:i], m.names[i+1:]...), append(m.fds[:i:i], m.fds[i+1:]...)
			}
		}
	case fields["FDSTORE"] == "1" && fields["FDPOLL"] == "0" && !strings.Contains(fields["FDNAME"], ":"):
		for _, fd := range fds {
			if len(m.fds) >= m.room || m.has(fd) {
				unix.Close(fd)
				continue
			}
			m.names, m.fds = append(m.names, fields["FDNAME"]), append(m.fds, fd)
		}
		return
	}
	closeAll(fds)
}

func (m *manager) has(fd int) bool {
	for _, other := range m.fds {
		if same(other, fd) {
			return true
		}
	}
	return false
}
