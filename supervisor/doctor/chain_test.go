package doctor

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// manySockets are as many as are too many here.
const manySockets = 100

// crowd is a port on which as many sockets listen as are too many, each on an
// address of its own.
func crowd(t *testing.T, listening int) (port int) {
	t.Helper()
	for port == 0 { // below those that the kernel gives to clients
		try := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", try)); err == nil {
			l.Close()
			port = try
		}
	}
	for i := range listening {
		listenAt(t, [4]byte{127, 5, byte(i / 250), byte(1 + i%250)}, port, true)
	}
	return port
}

func listenAt(t *testing.T, addr [4]byte, port int, reusePort bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if reusePort {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr, Port: port}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
}

func chains(port int) []Finding {
	return examineChains(Options{long: manySockets, Config: &config.Config{Listeners: []config.Listener{
		{Name: "web", Address: fmt.Sprintf("127.5.0.1:%d", port)},
		{Name: "api", Address: fmt.Sprintf("127.5.0.2:%d", port)},
	}}})
}

func TestBindTrapIsNamed(t *testing.T) {
	port := crowd(t, manySockets)
	findings := chains(port)
	if len(findings) != 1 || findings[0].Level != OK || findings[0].Name != fmt.Sprint(port) {
		t.Fatalf("all of them share: %+v, want one that is ok", findings)
	}
	listenAt(t, [4]byte{127, 5, 9, 9}, port, false)
	findings = chains(port)
	if len(findings) != 1 || findings[0].Level != Warn || findings[0].Advice == "" {
		t.Fatalf("one does not share: %+v, want one warning", findings)
	}
	for _, want := range []string{
		fmt.Sprintf("%d sockets", manySockets+1), fmt.Sprintf("on %d addresses", manySockets+1), "1 of them without SO_REUSEPORT",
		fmt.Sprintf("(pid %d) on 127.5.9.9:%d", os.Getpid(), port), "a bind to 127.5.0.1",
	} {
		if !strings.Contains(findings[0].Found, want) {
			t.Errorf("%q does not say %q", findings[0].Found, want)
		}
	}
}

// Many connections on one address of several, all with SO_REUSEPORT.
func TestBindTrapOfConnections(t *testing.T) {
	c, err := ports.ChainOf(uint16(crowd(t, 2)))
	if err != nil {
		t.Fatal(err)
	}
	c.Sockets, c.Longest = manySockets+2, manySockets
	if f := judgeChain(c, manySockets); f.Level != Warn || !strings.Contains(f.Found, "after one to another") {
		t.Errorf("%+v, want a warning", f)
	}
	c.Listening = c.Listening[:1]
	if f := judgeChain(c, manySockets); f.Level != OK {
		t.Errorf("with one address: %+v, want ok", f)
	}
}

func TestSmallPortsAreNotMentioned(t *testing.T) {
	if findings := chains(crowd(t, 3)); len(findings) != 0 {
		t.Errorf("%+v, want nothing", findings)
	}
}

// The sockets of two generations and the sinks must be open at once.
func TestFilesForListeners(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	o := Options{Config: &config.Config{Listeners: []config.Listener{{Workers: 64}, {Workers: 1}}}}
	if n := o.listeningFiles(); n != 129+3 {
		t.Errorf("%d descriptors, want 132", n)
	}
	o.Config.Listeners[0].Workers = int(min(limit.Max, math.MaxInt32))
	if f := examineFiles(o); limit.Max < math.MaxInt32 && (f[0].Level != Fail || !strings.Contains(f[0].Found, "the listeners alone take")) {
		t.Errorf("%+v, want a failure", f)
	}
	if err := Files(o.Config); limit.Max < math.MaxInt32 && err == nil {
		t.Error("a supervisor would begin, and run out of descriptors")
	}
	o.Config.Listeners[0].Workers = 1
	if err := Files(o.Config); err != nil {
		t.Error(err)
	}
}
