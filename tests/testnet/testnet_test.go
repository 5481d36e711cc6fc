package testnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHostsReachEachOther(t *testing.T) {
	hosts := New(t, "client", "node")
	client, node := hosts[0], hosts[1]
	for _, addr := range []netip.Addr{node.Addr4, node.Addr6} {
		t.Run(addr.String(), func(t *testing.T) {
			l, err := node.Listen(netip.AddrPortFrom(addr, 80).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := client.Dial("tcp", netip.AddrPortFrom(addr, 80))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			// More than a segment, to see that software checksums hold.
			sent := bytes.Repeat([]byte("baton"), 100_000)
			go func() {
				defer s.Close()
				s.Write(sent)
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("got %d bytes, %v, want the %d sent", len(got), err, len(sent))
			}
			if from := s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != client.Addr4 && from != client.Addr6 {
				t.Errorf("the connection comes from %s, want the client", from)
			}
		})
	}
}

// Two networks with the same addresses at the same time.
func TestNetworksAreApart(t *testing.T) {
	for i := range 2 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			node := New(t, "node")[0]
			l, err := node.Listen("0.0.0.0:80")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := node.Dial("tcp", netip.AddrPortFrom(node.Addr4, 80))
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		})
	}
}

func TestDoLeavesTheCallerWhereItWas(t *testing.T) {
	node := New(t, "node")[0]
	outside := namespaceOf(t)
	var inside string
	if err := node.Do(func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside == outside {
		t.Error("Do ran outside the host")
	}
	if now := namespaceOf(t); now != outside {
		t.Errorf("after Do the test is in %s, was in %s", now, outside)
	}
	if err := node.Do(func() error { return io.EOF }); !errors.Is(err, io.EOF) {
		t.Errorf("Do returned %v, want what its function returned", err)
	}
	if err := node.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do returned nil though its function did not return")
	}
}

func TestCommand(t *testing.T) {
	node := New(t, "first", "node")[1]
	cmd := node.Command("sh", "-c", "echo $$; cat /proc/net/fib_trie")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), node.Addr4.String()) {
		t.Errorf("%s is not among the addresses the command saw:\n%s", node.Addr4, out)
	}
	if pid, _, _ := strings.Cut(string(out), "\n"); pid != fmt.Sprint(cmd.Process.Pid) {
		t.Errorf("the program has pid %s, the command says %d", pid, cmd.Process.Pid)
	}
}

func TestChecksumsAreMadeInSoftware(t *testing.T) {
	node := New(t, "node")[0]
	var on uint32
	if err := node.Do(func() (err error) {
		on, err = ethtool(Interface, unix.ETHTOOL_GTXCSUM, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if on != 0 {
		t.Error("checksum offload is on")
	}
}

func TestNothingStaysBehind(t *testing.T) {
	before := openFiles(t)
	t.Run("a test", func(t *testing.T) { New(t, "client", "node") })
	if after := openFiles(t); after != before {
		t.Errorf("%d open files after the test, %d before", after, before)
	}
}

func namespaceOf(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
