package admin

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

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
