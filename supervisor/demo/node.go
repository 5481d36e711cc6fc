package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// Node is a supervisor that runs as a child process, driven as an operator
// would: by its commands and its admin socket.
type Node struct {
	// HTTP, HTTPS, TCP and UDP are the addresses of the listeners web, edge, raw and
	// dgram; UDP's is not valid without [Settings.Datagrams].
	HTTP, HTTPS, TCP, UDP netip.AddrPort
	// DatagramOrigin is where the origin echoes datagrams.
	DatagramOrigin string
	// Dir holds the configuration files, the runtime directory and the log.
	Dir string

	executable string
	lock       *os.File // says that the directory is in use
	origin     *Origin
	admin      string // host:port
	socket     string
	api        *http.Client
	command    func() *exec.Cmd // makes another supervisor of the same settings
	cmd        *exec.Cmd        // nil before the first
	ended      chan struct{}    // closed when cmd has been waited for
}

// StartNode writes settings to a directory of its own, runs `executable run` on
// it with an origin behind, and returns when it serves. [Node.Stop] ends it.
func StartNode(ctx context.Context, executable string, at Place, s Settings) (_ *Node, err error) {
	at = at.orLoopback()
	n := &Node{executable: executable}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start node: %w", err)
			if ctx.Err() != nil {
				n.abandon()
				return
			}
			n.Stop()
		}
	}()
	if n.Dir, n.lock, err = makeDir(); err != nil {
		return nil, err
	}
	// A generation runs as another user and must be able to reach its notify socket.
	if err := os.Chmod(n.Dir, 0o711); err != nil {
		return nil, err
	}
	if n.origin, err = at.startOrigin("127.0.0.1:0", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	free, err := at.freePorts(4)
	if err != nil {
		return nil, err
	}
	n.HTTP, n.HTTPS, n.TCP, n.admin = free[0], free[1], free[2], free[3].String()
	if s.Datagrams {
		if n.DatagramOrigin, err = n.origin.echoDatagrams("127.0.0.1:0"); err != nil {
			return nil, err
		}
		n.UDP = n.TCP
	}
	if err := WriteCertificate(n.Dir, "first"); err != nil {
		return nil, err
	}
	n.socket = filepath.Join(n.runtimeDir(), "admin.sock")
	n.api = newAPI(n.socket)
	file, err := n.WriteConfig("first", s)
	if err != nil {
		return nil, err
	}
	args := []string{"run", "--config", file}
	if s.Unsteered {
		args = append(args, "--unsteered")
	}
	n.command = func() *exec.Cmd { return at.Command(executable, args...) }
	return n, n.start(ctx)
}

// start runs the supervisor and returns when it serves.
func (n *Node) start(ctx context.Context) error {
	if err := n.run(); err != nil {
		return err
	}
	return n.waitServing(ctx)
}

// Replace runs another supervisor that takes over from the one that runs, and
// returns when it serves.
func (n *Node) Replace(ctx context.Context) error {
	former := n.ended
	if err := n.run("--replace"); err != nil {
		return err
	}
	select {
	case <-former:
		return n.waitServing(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) run(args ...string) error {
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own copy

	cmd := n.command()
	cmd.Args = append(cmd.Args, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if n.ended, err = startTied(cmd); err != nil {
		return err
	}
	n.cmd = cmd
	return nil
}

// startTied starts a supervisor that ends in order when this process dies,
// however it dies. The channel is closed when it has been waited for.
func startTied(cmd *exec.Cmd) (ended chan struct{}, err error) {
	// An interrupt from the terminal is for whoever runs the node, who then
	// stops it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	ended = make(chan struct{})
	go func() {
		// The kernel sends the signal when the thread ends that has started the
		// process, so that thread is kept for as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(ended)
		}
	}()
	return ended, <-started
}

// Kill ends the supervisor with SIGKILL. Its generations live on.
func (n *Node) Kill() {
	n.cmd.Process.Kill()
	<-n.ended
}

// Restart runs another supervisor in the place of one that was killed, and
// returns when it serves.
func (n *Node) Restart(ctx context.Context) error { return n.start(ctx) }

// Begin is Restart that does not wait until it serves.
func (n *Node) Begin() error { return n.run() }

// Load is the usual load on the node.
func (n *Node) Load() (*Load, error) {
	pool, err := roots(n.Dir)
	if err != nil {
		return nil, err
	}
	load := &Load{HTTP: n.HTTP.String(), HTTPS: n.HTTPS.String(), TCP: n.TCP.String(), Roots: pool}
	if n.UDP.IsValid() {
		load.HTTP3, load.UDP = n.HTTPS.String(), n.UDP.String()
	}
	return load, nil
}

// LogFile is where the supervisor and its generations write.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "baton.log") }

func (n *Node) runtimeDir() string { return filepath.Join(n.Dir, "run") }

// Admin is the host:port of metrics and health.
func (n *Node) Admin() string { return n.admin }

// Executable is the baton binary that runs.
func (n *Node) Executable() string { return n.executable }

// Answered counts the requests for /small at the origin.
func (n *Node) Answered() int64 { return n.origin.Answered() }

// Socket is the supervisor's admin socket.
func (n *Node) Socket() string { return n.socket }

// PID is the supervisor's.
func (n *Node) PID() int { return n.cmd.Process.Pid }

func (n *Node) waitServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		s, err := n.Status(ctx)
		if err == nil && s.PID == n.PID() && s.State == "serving" {
			if err = n.ready(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-n.ended:
			return fmt.Errorf("baton run ended: %v\n%s", n.cmd.ProcessState, n.logTail())
		case <-ctx.Done():
			return fmt.Errorf("baton run does not serve: %w\n%s", errors.Join(ctx.Err(), err), n.logTail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ready asks what a load balancer outside would, but by the socket, which can
// be reached from any network namespace.
func (n *Node) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://baton/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := n.api.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %s", resp.Status)
	}
	return nil
}

// newAPI is a client whose every host is the admin socket.
func newAPI(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// Status asks the supervisor how it is.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://baton/v1/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.api.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status: %s", resp.Status)
	}
	var s Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	return &s, nil
}

// Release runs `baton release` with a configuration file and returns what it
// printed, whatever the outcome. An error means that the command itself broke
// its promise: no answer, or another exit code than the one it printed.
func (n *Node) Release(ctx context.Context, file string) (*Result, error) {
	return n.release(ctx, "--config", file)
}

// ReleaseUnwatched is Release with --no-verify.
func (n *Node) ReleaseUnwatched(ctx context.Context, file string) (*Result, error) {
	return n.release(ctx, "--no-verify", "--config", file)
}

// ReleaseOf is Release of some listeners alone, with a ramp.
func (n *Node) ReleaseOf(ctx context.Context, file, ramp string, listeners ...string) (*Result, error) {
	args := []string{"--config", file, "--ramp", ramp}
	for _, l := range listeners {
		args = append(args, "--listener", l)
	}
	return n.release(ctx, args...)
}

func (n *Node) release(ctx context.Context, args ...string) (*Result, error) {
	cmd := exec.CommandContext(ctx, n.executable, append([]string{"--socket", n.socket, "-o", "json", "release"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("baton release: %w", err)
	}
	var r Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("baton release: %v, printed no result (%w): %s", cmd.ProcessState, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if code := cmd.ProcessState.ExitCode(); code != r.ExitCode {
		return &r, fmt.Errorf("baton release: exit code %d, but printed %d", code, r.ExitCode)
	}
	return &r, nil
}

// Stop ends the supervisor with SIGTERM, which drains it, then the origin. An
// error says that it did not end by itself, or not with exit code 0. The
// directory stays; see [Node.Remove].
func (n *Node) Stop() error {
	var err error
	if n.cmd != nil {
		n.end(time.Minute)
		if !n.cmd.ProcessState.Success() {
			err = fmt.Errorf("baton run: %v\n%s", n.cmd.ProcessState, n.logTail())
		}
	}
	if n.api != nil {
		n.api.CloseIdleConnections()
	}
	if n.origin != nil {
		err = errors.Join(err, n.origin.Close())
	}
	if n.lock != nil {
		os.Remove(filepath.Join(n.Dir, lockName)) // the directory is somebody's to read
		n.lock.Close()
	}
	return err
}

// end ends the supervisor with SIGTERM, and with a second one if it takes longer than
// patience.
func (n *Node) end(patience time.Duration) {
	for _, wait := range []time.Duration{patience, time.Minute} {
		n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.ended:
			return
		case <-time.After(wait):
		}
	}
	n.cmd.Process.Kill()
	<-n.ended
}

// abandon ends the supervisor without waiting for what it drains, and leaves nothing.
func (n *Node) abandon() error {
	if n.cmd != nil {
		n.end(500 * time.Millisecond)
	}
	return errors.Join(n.Stop(), n.Remove())
}

// Remove deletes the node's directory.
func (n *Node) Remove() error { return os.RemoveAll(n.Dir) }

// logTail is the end of the log, for an error.
func (n *Node) logTail() string {
	b, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}
