package doctor

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/proxy/config"
)

// takeDatagrams is what is found of a listener of UDP, by the names of the findings.
func takeDatagrams(t *testing.T, address, socket string, proc files) map[string]Finding {
	t.Helper()
	o := Options{
		Config: &config.Config{
			Admin:     config.Admin{Socket: socket},
			Listeners: []config.Listener{{Name: "dgram", Address: address, Protocol: config.UDP}},
		},
		readFile: proc.read,
	}
	if of := examineListeners(o); len(of) > 0 {
		t.Errorf("of connections to a listener of UDP: %+v", of)
	}
	found := map[string]Finding{}
	for _, f := range examineDatagrams(o) {
		found[f.Name] = f
	}
	return found
}

func wantFinding(t *testing.T, f Finding, level Level, found, advice string) {
	t.Helper()
	if f.Level != level || !strings.Contains(f.Found, found) || !strings.Contains(f.Advice, advice) {
		t.Errorf("%+v, want %s with %q and the advice %q", f, level, found, advice)
	}
}

func TestBuffersForDatagrams(t *testing.T) {
	proc := func(limit, capabilities string) files {
		return files{
			"/proc/self/status":           "CapEff:\t" + capabilities + "\n",
			"/proc/sys/net/core/rmem_max": limit, "/proc/sys/net/core/wmem_max": "212992000",
		}
	}
	const rmem = "net.core.rmem_max"
	for name, test := range map[string]struct {
		proc          files
		level         Level
		found, advice string
	}{
		"large enough": {proc("7340032", "0000000000000000"), OK, "7340032", ""},
		"too small":    {proc("212992", "0000000000000000"), Warn, "212992", "set it to 7340032, or grant CAP_NET_ADMIN"},
		"overridden":   {proc("212992", "000001ffffffffff"), OK, "goes beyond", ""},
		"not there":    {files{}, Warn, "not exist", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := takeDatagrams(t, "127.0.0.1:0", "", test.proc)
			wantFinding(t, found[rmem], test.level, test.found, test.advice)
			wantFinding(t, found["GSO"], OK, "UDP_SEGMENT", "")
		})
	}
	if f := examineDatagrams(Options{Config: &config.Config{Listeners: []config.Listener{{Name: "web", Protocol: config.HTTP}}}}); f != nil {
		t.Errorf("without such a listener: %+v", f)
	}
}

func TestHoldersOfDatagrams(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	address := c.LocalAddr().String()
	f := takeDatagrams(t, address, "", nil)["dgram"]
	wantFinding(t, f, Fail, fmt.Sprintf("(pid %d) takes datagrams on %s", os.Getpid(), address), "stop that process")

	// Of the supervisor that runs it is no stranger's.
	socket := filepath.Join(t.TempDir(), "admin.sock")
	admin, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	wantFinding(t, takeDatagrams(t, address, socket, nil)["dgram"], OK, "the baton that runs", "")

	// One of every address would get what ours is not there for.
	all, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	_, port, _ := net.SplitHostPort(all.LocalAddr().String())
	wantFinding(t, takeDatagrams(t, "127.0.0.1:"+port, "", nil)["dgram"], Fail, "on 0.0.0.0:"+port, "stop")
	c.Close()
	wantFinding(t, takeDatagrams(t, address, "", nil)["dgram"], OK, "is free", "")
	wantFinding(t, takeDatagrams(t, "192.0.2.1:8080", "", nil)["dgram"], Fail, "192.0.2.1", "interface")
}
