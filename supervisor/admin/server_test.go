package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
)

const asGeneration = "connect-to-the-socket"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asGeneration {
		_, err := net.Dial("unix", os.Args[2])
		var errno syscall.Errno
		errors.As(err, &errno)
		fmt.Print(int(errno))
		return
	}
	os.Exit(m.Run())
}

// A generation runs as another user: the socket that can start any binary is not
// for it.
func TestSocketIsForItsOwnerAlone(t *testing.T) {
	need.Root(t, "another user connects")
	dir, err := os.MkdirTemp("", "admin")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "admin.sock")
	srv, err := Listen(nil, nil, socket, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	for uid, want := range map[uint32]syscall.Errno{0: 0, 65534: syscall.EACCES} {
		cmd := exec.Command("/proc/self/exe", asGeneration, socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.Output()
		if err != nil || string(out) != fmt.Sprint(int(want)) {
			t.Errorf("user %d was answered %s, %v; want %d", uid, out, err, int(want))
		}
	}
}

// A socket whose file somebody has removed is made again, for its owner alone, and
// answers; of the one that nobody can reach any more nothing is left.
func TestSocketIsMadeAgain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	srv, err := Listen(nil, nil, socket, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the socket is made again", func() bool {
			_, err := os.Stat(socket)
			return err == nil
		})
		eventually(t, "it is for its owner alone", func() bool {
			info, err := os.Stat(socket)
			return err == nil && info.Mode().Perm() == 0o600
		})
		client := Dial(socket).http
		client.Timeout = time.Minute
		resp, err := client.Get("http://baton/healthz")
		if err != nil {
			t.Fatalf("who asks by the new socket: %v", err)
		}
		resp.Body.Close()
		eventually(t, "one socket of the name is open", func() bool {
			table, err := os.ReadFile("/proc/self/net/unix")
			return err == nil && strings.Count(string(table), " "+socket+"\n") == 1
		})
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// Who asks a supervisor that is stopped is told so.
func TestNobodyAnswers(t *testing.T) {
	answerPatience = 10 * time.Millisecond
	t.Cleanup(func() { answerPatience = 30 * time.Second })
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Dial(socket).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "stopped or stuck") {
		t.Error(err)
	}
}
