// Package balance tests `baton balance` as an operator meets it: a process in a
// host of its own, clients and reals in others, real packets between them.
package balance

import (
	"bytes"
	"encoding/json"
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

	"github.com/vishvananda/netlink"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

const (
	vipPort    = 8080
	healthPort = 9000
)

var vip = netip.MustParseAddr("10.88.0.1")

// lab is a client, a balancer and reals on one switch. Reals have the VIP on
// loopback and answer the client directly.
type lab struct {
	t        *testing.T
	client   *testnet.Host
	balancer *testnet.Host
	reals    []*real
	dir      string
	health   string // its health
	protocol string // of the VIP, and what of it is read
	extra    string // of the file
	process  *exec.Cmd
	ended    chan struct{} // closed when the process has ended
	log      string
}

// real is a node behind the VIP: its echo says who it is.
type real struct {
	host   *testnet.Host
	name   string
	echo   net.Listener
	health net.Listener // nil: it fails its checks
}

func newLab(t *testing.T, reals int) *lab {
	names := []string{"client", "balancer"}
	for i := range reals {
		names = append(names, fmt.Sprintf("node-%d", i+1))
	}
	hosts := testnet.New(t, names...)
	l := &lab{
		t: t, client: hosts[0], balancer: hosts[1], dir: t.TempDir(),
		protocol: "protocols: [tcp]",
		health:   fmt.Sprintf("{tcp_port: %d, interval: 200ms, timeout: 20s, fall: 2, rise: 2}", healthPort),
	}
	l.do(l.client, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: host32(vip), Gw: l.balancer.Addr4.AsSlice()})
	})
	for i, h := range hosts[2:] {
		r := &real{host: h, name: fmt.Sprintf("node-%d", i+1)}
		l.do(h, func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			// The client's ARP is for the balancer alone; nobody asks for the VIP.
			return netlink.AddrAdd(lo, &netlink.Addr{IPNet: host32(vip)})
		})
		r.echo = l.listen(h, netip.AddrPortFrom(vip, vipPort))
		go serve(r.echo, r.name)
		l.reals = append(l.reals, r)
		l.revive(r)
	}
	return l
}

func host32(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func (l *lab) do(h *testnet.Host, f func() error) {
	l.t.Helper()
	if err := h.Do(f); err != nil {
		l.t.Fatalf("%s: %v", h.Name, err)
	}
}

func (l *lab) listen(h *testnet.Host, at netip.AddrPort) net.Listener {
	l.t.Helper()
	ln, err := h.Listen(at.String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	return ln
}

// serve answers each octet with the server's name on a line.
func serve(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for octet := make([]byte, 1); ; {
				if _, err := c.Read(octet); err != nil {
					return
				}
				if _, err := c.Write([]byte(name + "\n")); err != nil {
					return
				}
			}
		}()
	}
}

// revive lets a real pass its checks.
func (l *lab) revive(r *real) {
	r.health = l.listen(r.host, netip.AddrPortFrom(r.host.Addr4, healthPort))
	go serve(r.health, "")
}

// config writes the file.
func (l *lab) config(extra string) string {
	l.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "runtime_dir: %s/run\nadmin: {address: \"127.0.0.1:9900\"}\nbalancer:\n  interfaces: [eth0]\n  xdp_mode: generic\n  health: %s\n", l.dir, l.health)
	fmt.Fprintf(&b, "  vips: [{address: %s, port: %d, %s}]\n  reals:\n", vip, vipPort, l.protocol)
	for i, r := range l.reals {
		fmt.Fprintf(&b, "    - {name: %s, address: %s, server_id: %d}\n", r.name, r.host.Addr4, i+1)
	}
	b.WriteString(extra)
	file := filepath.Join(l.dir, "balancer.yaml")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return file
}

func (l *lab) baton(args ...string) *exec.Cmd {
	return l.balancer.Command(filepath.Join(node.Build(l.t), "baton"), append([]string{"--socket", l.dir + "/run/admin.sock"}, args...)...)
}

// start runs the balancer until stop or the end of the test, and waits until it balances.
func (l *lab) start() {
	l.t.Helper()
	file := l.config(l.extra)
	l.process = l.baton("balance", "--config", file)
	l.log = filepath.Join(l.dir, "log")
	log, err := os.OpenFile(l.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	l.process.Stderr = log
	process, ended := l.process, make(chan struct{})
	l.ended = ended
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread dies that has started the process.
		runtime.LockOSThread()
		err := process.Start()
		started <- err
		if err == nil {
			process.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		process.Process.Kill()
		<-ended
		if l.t.Failed() {
			text, _ := os.ReadFile(l.log)
			l.t.Logf("the balancer's log:\n%s", text)
		}
		if out, err := l.baton("balance", "remove", "--config", file).CombinedOutput(); err != nil {
			l.t.Errorf("remove: %v: %s", err, out)
		}
	})
	node.Eventually(l.t, "the balancer answers and is attached", func() bool {
		st, err := l.admin().BalancerStatus(l.t.Context())
		select {
		case <-ended:
			l.t.Fatal("the balancer has ended")
		default:
		}
		return err == nil && len(st.Interfaces) > 0 && st.Interfaces[0].Attached
	})
}

// kill ends the process without notice.
func (l *lab) kill() {
	l.t.Helper()
	l.process.Process.Kill()
	<-l.ended
}

func (l *lab) admin() *admin.Client { return admin.Dial(l.dir + "/run/admin.sock") }

func (l *lab) status() balancer.Status {
	l.t.Helper()
	st, err := l.admin().BalancerStatus(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// await waits until a real is in a state.
func (l *lab) await(name string, state balancer.State) {
	l.t.Helper()
	l.awaitState(name, "is "+string(state), func(s balancer.State) bool { return s == state })
}

// awaitNot waits until it is in another.
func (l *lab) awaitNot(name string, state balancer.State) {
	l.t.Helper()
	l.awaitState(name, "is not "+string(state), func(s balancer.State) bool { return s != state })
}

func (l *lab) awaitState(name, what string, is func(balancer.State) bool) {
	l.t.Helper()
	node.Eventually(l.t, name+" "+what, func() bool {
		st, err := l.admin().BalancerStatus(l.t.Context())
		if err != nil {
			return false
		}
		for _, r := range st.Reals {
			if r.Name == name {
				return is(r.State)
			}
		}
		return false
	})
}

// flow is a connection through the balancer that never rests.
type flow struct {
	conn net.Conn
	real string // who answers

	mu    sync.Mutex
	trips int
	err   error // what has ended it
}

// open makes a flow, which is used until the test ends.
func (l *lab) open() (*flow, error) {
	conn, err := l.client.Dial("tcp", netip.AddrPortFrom(vip, vipPort))
	if err != nil {
		return nil, err
	}
	f := &flow{conn: conn}
	if f.real, err = f.trip(); err != nil {
		conn.Close()
		return nil, err
	}
	l.t.Cleanup(func() { conn.Close() })
	go func() {
		for {
			real, err := f.trip()
			f.mu.Lock()
			if f.trips++; err == nil && real != f.real {
				err = fmt.Errorf("%s answers for %s", real, f.real)
			}
			if err != nil {
				f.err = err
				f.mu.Unlock()
				return
			}
			f.mu.Unlock()
			time.Sleep(10 * time.Millisecond)
		}
	}()
	return f, nil
}

// trip sends an octet and returns the name that comes back.
func (f *flow) trip() (string, error) {
	f.conn.SetDeadline(time.Now().Add(node.Enough))
	if _, err := f.conn.Write([]byte("?")); err != nil {
		return "", err
	}
	var name []byte
	for octet := make([]byte, 1); ; {
		if _, err := io.ReadFull(f.conn, octet); err != nil {
			return "", err
		}
		if octet[0] == '\n' {
			return string(name), nil
		}
		name = append(name, octet[0])
	}
}

func (f *flow) state() (trips int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trips, f.err
}

// flows opens n flows. Every one must come to be.
func (l *lab) flows(n int) []*flow {
	l.t.Helper()
	all := make([]*flow, n)
	for i := range all {
		f, err := l.open()
		if err != nil {
			l.t.Fatalf("flow %d: %v", i, err)
		}
		all[i] = f
	}
	return all
}

// at is the flows of one real.
func at(flows []*flow, real string) (list []*flow) {
	for _, f := range flows {
		if f.real == real {
			list = append(list, f)
		}
	}
	return list
}

// wantMoving waits until each flow, but those of the real named, has moved octets
// both ways since it was called.
func (l *lab) wantMoving(flows []*flow, except string) {
	l.t.Helper()
	for i, f := range flows {
		if f.real == except {
			continue
		}
		before, _ := f.state()
		node.Eventually(l.t, fmt.Sprintf("flow %d of %s moves", i, f.real), func() bool {
			trips, err := f.state()
			if err != nil {
				l.t.Fatalf("flow %d of %s: %v", i, f.real, err)
			}
			return trips > before+1
		})
	}
}

// command runs baton balance with arguments and returns what it prints and its exit code.
func (l *lab) command(args ...string) (out string, code int) {
	l.t.Helper()
	cmd := l.baton(append([]string{"balance"}, args...)...)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	limit := time.AfterFunc(node.Enough, func() { cmd.Process.Kill() })
	defer limit.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		l.t.Fatal(err)
	}
	return text.String(), cmd.ProcessState.ExitCode()
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
