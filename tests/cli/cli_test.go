// Package cli runs the commands as an operator types them. The scripts in
// testdata read as their manual; these are the words they use besides those of
// testscript:
//
//	baton ARGS           runs baton against this script's supervisor; it must exit 0
//	baton run ARGS &     starts the supervisor and waits until it serves
//	exits CODE COMMAND   runs any command, which must exit with that code
//	await RE COMMAND     runs a command again and again until its output matches
//	signal NAME          sends HUP or TERM to the supervisor
//	logged RE            the log of the supervisor and its generations has it
//	ended                waits for the supervisor to end, with exit code 0
//	load URL             starts strict clients, which retry nothing
//	answered             they have gone on, and no request of theirs has failed
//	undisturbed          answered, and over the connection that the first request went over
//	load stop            ends them
//	hold ADDRESS HOW     another process listens there, exclusive or with reuseport
//	hold stop            ends it
//	liar                 is a generation that says it is ready and answers nobody
//
// and these are their variables: $RUN, a runtime_dir that does not exist yet;
// $WEB, $ADMIN, $FREE and $OTHER, ports that are free; $ORIGIN, the address of
// a server that answers "hello". They are replaced in *.yaml. baton.yaml, if a
// script brings none, is the one in this folder.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/tests/need"
	supervised "github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/scratch"
)

// liar is a generation that says it is ready and answers nobody: the test binary
// under another name.
const liar = "liar"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == liar {
		if err := contract.Notify(context.Background(), "READY=1"); err != nil {
			fmt.Fprintln(os.Stderr, "liar:", err)
			os.Exit(1)
		}
		select {}
	}
	os.Exit(supervised.Main(m))
}

// TestAnyone runs what needs no supervisor, and so no privileges.
func TestAnyone(t *testing.T) { scripts(t, "testdata/anyone") }

// TestRoot runs what starts supervisors.
func TestRoot(t *testing.T) {
	need.Root(t, "a supervisor loads BPF programs")
	scripts(t, "testdata/root")
}

func scripts(t *testing.T, dir string) {
	bin := build(t)
	testscript.Run(t, testscript.Params{
		Dir:                dir,
		RequireUniqueNames: true,
		Setup:              func(env *testscript.Env) error { return setup(env, bin) },
		Cmds:               commands,
		// A supervisor that should have refused to run never ends.
		Deadline: time.Now().Add(8 * time.Minute),
	})
}

// build compiles what is under test, and has the liar beside it.
func build(t *testing.T) string {
	t.Helper()
	dir := supervised.Build(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, liar)); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return dir
}

// setup gives a script its variables, its origin and its files.
func setup(env *testscript.Env, bin string) error {
	t := env.T().(testing.TB)
	run := filepath.Join(scratch.Dir(t), "run")
	origin := httptest.NewServer(http.HandlerFunc(answer))
	t.Cleanup(func() {
		origin.CloseClientConnections()
		origin.Close()
	})
	n := &node{}
	env.Values[nodeKey{}] = n
	t.Cleanup(func() {
		n.cleanUp(t)
		supervised.WantNothingLeft(t, run)
	})

	env.Setenv("PATH", bin+":"+env.Getenv("PATH"))
	env.Setenv("BIN", bin)
	env.Setenv("RUN", run)
	env.Setenv("ORIGIN", origin.Listener.Addr().String())
	for _, name := range []string{"WEB", "ADMIN", "FREE", "OTHER"} {
		env.Setenv(name, strconv.Itoa(freePort(t)))
	}
	return writeConfigs(env)
}

// answer is the origin. A path that begins with /slow keeps its client waiting
// in the middle of the body.
func answer(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/slow", "/slower":
		wait := 500 * time.Millisecond
		if r.URL.Path == "/slower" {
			wait = time.Minute
		}
		fmt.Fprintln(w, "begin")
		w.(http.Flusher).Flush()
		select {
		case <-time.After(wait):
			fmt.Fprintln(w, "end")
		case <-r.Context().Done():
		}
	default:
		fmt.Fprintln(w, "hello")
	}
}

// writeConfigs replaces the variables in the configurations of a script.
func writeConfigs(env *testscript.Env) error {
	standard, err := os.ReadFile("baton.yaml")
	if err != nil {
		return err
	}
	path := filepath.Join(env.WorkDir, "baton.yaml")
	if _, err := os.Stat(path); err != nil {
		if err := os.WriteFile(path, standard, 0o644); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(env.WorkDir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f, []byte(os.Expand(string(text), env.Getenv)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lastPort is below the ports that Linux gives to outgoing connections, and
// begins anywhere, since other packages are tested at the same time.
var lastPort atomic.Int32

func init() { lastPort.Store(15000 + rand.Int32N(15000)) }

func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := int(lastPort.Add(1))
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port)) // both families
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}
