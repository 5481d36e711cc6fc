package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary doubles as the process to be killed: it accepts the
// connections it is told to, says so, and echoes nothing.
func TestMain(m *testing.M) {
	if os.Getenv("DEMO_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	var kept []net.Conn
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		kept = append(kept, c)
		fmt.Println(len(kept))
	}
}

func TestKillListsWhatTheProcessHasAccepted(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "DEMO_TEST_CHILD=1")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	lines := bufio.NewReader(out)
	address := strings.TrimSpace(readLine(t, lines))
	server := netip.MustParseAddrPort(address)

	// Two connections it accepts, one that stays in its queue, one to another server.
	var conns []net.Conn
	var flows []Flow
	other := startOrigin(t)
	for i, to := range []string{address, address, address, other.EchoAddress()} {
		c, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		flows = append(flows, Flow{addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())})
		if i < 2 {
			fmt.Fprintln(in, "accept")
			readLine(t, lines)
		}
	}
	dialled := time.Now()

	if _, err := Kill(child.Process.Pid, os.Getpid()+1, server); err == nil {
		t.Fatal("killed a process that is not the child of the parent named")
	}
	d, err := Kill(child.Process.Pid, os.Getpid(), server)
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil || child.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("child: %v", child.ProcessState)
	}
	if _, err := conns[0].Read(make([]byte, 1)); err == nil {
		t.Error("read from a killed process")
	}
	if d.Flows() != 2 {
		t.Errorf("%d flows, want 2", d.Flows())
	}
	udp := func(port uint16) Flow {
		return Flow{netip.AddrPortFrom(server.Addr(), port), server}
	}
	stopped := time.Now()
	time.Sleep(time.Millisecond)
	d.Generation = 3
	d.Given(map[Flow]int{udp(1): 7, udp(2): 8}, 7)
	after := time.Now()
	for i, tt := range []struct {
		why  string
		op   Op
		want bool
	}{
		{"accepted", Op{Flow: flows[0], Dialled: dialled, End: after, Err: io.EOF}, true},
		{"accepted", Op{Flow: flows[1], Dialled: dialled, End: after, Err: io.EOF}, true},
		{"still queued", Op{Flow: flows[2], Dialled: dialled, End: after, Err: io.EOF}, false},
		{"another server", Op{Flow: flows[3], Dialled: dialled, End: after, Err: io.EOF}, false},
		{"never connected", Op{End: after, Err: io.EOF}, false},
		{"the port used again later", Op{Flow: flows[0], Dialled: after, End: after, Err: io.EOF}, false},
		{"failed before", Op{Flow: flows[0], Dialled: dialled, End: dialled, Err: io.EOF}, false},
		{"did not fail", Op{Flow: flows[0], Dialled: dialled, End: after}, false},
		{"HTTP/3, of the generation", Op{Kind: H3, Generation: 3, Dialled: dialled, End: after, Err: io.EOF}, true},
		{"HTTP/3, of another", Op{Kind: H3, Generation: 2, Dialled: dialled, End: after, Err: io.EOF}, false},
		{"HTTP/3, not answered", Op{Kind: H3New, Dialled: dialled, End: after, Err: io.EOF}, true},
		{"HTTP/3, not answered, later", Op{Kind: H3New, Dialled: after, End: after, Err: io.EOF}, false},
		{"datagrams", Op{Kind: UDP, Flow: udp(1), Dialled: dialled, End: after, Err: io.EOF}, true},
		{"datagrams, to a process that was stopped", Op{Kind: UDP, Flow: udp(1), Dialled: stopped, End: after, Err: io.EOF}, true},
		{"datagrams, when it was gone", Op{Kind: UDP, Flow: udp(1), Dialled: after, End: after, Err: io.EOF}, false},
		{"datagrams, to another slot", Op{Kind: UDP, Flow: udp(2), Dialled: dialled, End: after, Err: io.EOF}, false},
		{"datagrams, to nobody", Op{Kind: UDP, Flow: udp(3), Dialled: dialled, End: after, Err: io.EOF}, false},
		{"was told", Op{Flow: flows[0], Dialled: dialled, End: after, Err: ErrCut}, false},
	} {
		if got := d.Explains(tt.op); got != tt.want {
			t.Errorf("%d, %s: explained %t", i, tt.why, got)
		}
	}
}

func readLine(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
	} {
		got, err := parseAddress(text)
		if err != nil || got.String() != want {
			t.Errorf("%s: %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0100007F", "01007F:0050", "0100007F:10000"} {
		if got, err := parseAddress(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

func TestNilDeathExplainsNothing(t *testing.T) {
	if (*Death)(nil).Explains(Op{Err: errors.New("x")}) {
		t.Error("explained")
	}
}
