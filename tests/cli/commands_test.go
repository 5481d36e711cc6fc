package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

var commands = map[string]func(*testscript.TestScript, bool, []string){
	"baton":       positive(baton),
	"exits":       positive(exits),
	"await":       positive(await),
	"signal":      positive(signal),
	"ended":       positive(ended),
	"logged":      positive(logged),
	"load":        positive(startLoad),
	"answered":    positive(answered),
	"undisturbed": positive(undisturbed),
	"hold":        positive(hold),
}

// positive refuses "!": how a command must fail is for exits to say.
func positive(do func(*testscript.TestScript, []string)) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("write exits CODE in place of !")
		}
		do(ts, args)
	}
}

// enough is how long anything may take on a machine that has much else to do.
const enough = time.Minute

// node is what a script has running.
type node struct {
	supervisor *exec.Cmd
	log        string        // file of the supervisor's log and its generations'
	done       chan struct{} // closed when the supervisor has ended
	load       *load
	held       net.Listener
}

type nodeKey struct{}

func nodeOf(ts *testscript.TestScript) *node { return ts.Value(nodeKey{}).(*node) }

// cleanUp ends what a script has left running, and says what it should have ended.
func (n *node) cleanUp(t testing.TB) {
	if n.load != nil {
		n.load.stop()
	}
	if n.held != nil {
		n.held.Close()
	}
	if n.supervisor == nil {
		return
	}
	select {
	case <-n.done:
	default:
		if !t.Failed() {
			t.Error("the script has not ended its supervisor")
		}
		// The second signal ends it at once. SIGKILL would leave generations.
		n.supervisor.Process.Signal(syscall.SIGTERM)
		n.supervisor.Process.Signal(syscall.SIGTERM)
		<-n.done
	}
	if t.Failed() {
		log, err := os.ReadFile(n.log)
		t.Logf("log of the supervisor (%v):\n%s", err, log)
	}
}

func baton(ts *testscript.TestScript, args []string) {
	if len(args) > 1 && args[0] == "run" && args[len(args)-1] == "&" {
		run(ts, args[:len(args)-1])
		return
	}
	exits(ts, append([]string{"0", "baton"}, args...))
}

// run starts the supervisor and waits until it serves.
func run(ts *testscript.TestScript, args []string) {
	n := nodeOf(ts)
	if n.supervisor != nil {
		select {
		case <-n.done:
		default:
			ts.Fatalf("this script has a supervisor already")
		}
	}
	words := append(strings.Fields(ts.Getenv("RUN_BELOW")), append([]string{ts.Getenv("BIN") + "/baton"}, args...)...)
	cmd := exec.Command(words[0], words[1:]...) // who is named there becomes baton
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	if uid, err := strconv.Atoi(ts.Getenv("RUN_AS")); err == nil && os.Geteuid() == 0 {
		// An ordinary user, who may not enter $WORK: the change takes every capability.
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	n.log = filepath.Join(filepath.Dir(ts.Getenv("RUN")), "log") // outlives $WORK
	log, err := os.Create(n.log)
	ts.Check(err)
	defer log.Close()
	// A file, since a pipe would stay open in a generation whose supervisor died.
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	done := make(chan struct{})
	n.supervisor, n.done = cmd, done
	go func() {
		cmd.Wait()
		close(done)
	}()
	poll(ts, "the supervisor does not serve", func() bool {
		select {
		case <-done:
			ts.Fatalf("the supervisor ended: %v", cmd.ProcessState)
		default:
		}
		return strings.Contains(ts.ReadFile(n.log), `"msg":"serving","listeners"`)
	})
}

// environment is the script's, as far as a supervisor could care.
func environment(ts *testscript.TestScript) []string {
	env := []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME")}
	for _, name := range []string{"BATON_RELEASE_DRAIN_TIMEOUT", "BATON_SHUTDOWN_LEAD", "BATON_STEERING"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func exits(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := execute(ts, args[1:]); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// execute runs a command and returns its exit code.
func execute(ts *testscript.TestScript, args []string) int {
	if args[0] == "baton" {
		args = append([]string{"baton", "--socket", ts.Getenv("RUN") + "/admin.sock"}, args[1:]...)
	}
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v: %v", args, err)
	}
	if exit != nil {
		return exit.ExitCode()
	}
	return 0
}

func await(ts *testscript.TestScript, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await RE COMMAND")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, "never: "+args[0], func() bool {
		execute(ts, args[1:])
		return re.MatchString(ts.ReadFile("stdout"))
	})
}

func poll(ts *testscript.TestScript, never string, condition func() bool) {
	for begin := time.Now(); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > enough {
			ts.Fatalf("%s", never)
		}
	}
}

func signal(ts *testscript.TestScript, args []string) {
	signals := map[string]os.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM}
	if len(args) != 1 || signals[args[0]] == nil {
		ts.Fatalf("usage: signal HUP|TERM")
	}
	ts.Check(nodeOf(ts).supervisor.Process.Signal(signals[args[0]]))
}

func ended(ts *testscript.TestScript, _ []string) {
	n := nodeOf(ts)
	select {
	case <-n.done:
	case <-time.After(enough):
		ts.Fatalf("the supervisor has not ended")
	}
	if code := n.supervisor.ProcessState.ExitCode(); code != 0 {
		ts.Fatalf("the supervisor ended: %v", n.supervisor.ProcessState)
	}
}

func logged(ts *testscript.TestScript, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: logged RE")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	if !re.MatchString(ts.ReadFile(nodeOf(ts).log)) {
		ts.Fatalf("the supervisor has not logged %s", args[0])
	}
}

// hold listens as another process: this one.
func hold(ts *testscript.TestScript, args []string) {
	n := nodeOf(ts)
	if len(args) == 1 && args[0] == "stop" {
		ts.Check(n.held.Close())
		n.held = nil
		return
	}
	if len(args) != 2 || n.held != nil || args[1] != "exclusive" && args[1] != "reuseport" {
		ts.Fatalf("usage: hold ADDRESS exclusive|reuseport; hold stop")
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if args[1] == "reuseport" {
			c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
		}
		return err
	}}
	config.SetMultipathTCP(false)
	network := "tcp4"
	if strings.HasPrefix(args[0], "[") {
		network = "tcp6" // so that [::] is IPv6 only
	}
	l, err := config.Listen(context.Background(), network, args[0])
	ts.Check(err)
	n.held = l
}
