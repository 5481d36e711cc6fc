package quic

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// secondConfig is a configuration of another supervisor of the same number on the same host.
const secondConfig = `node: {name: second, server_id: 77}
runtime_dir: %[1]s/run
admin: {socket: %[1]s/run/admin.sock, address: ""}
listeners:
  - %[2]s
routes:
  - {name: all, listeners: [other], upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["127.0.0.1:1"]}
`

// TestTwoNodesOfOneNumber: a second supervisor with the number of one that runs is
// refused where their addresses meet, before it has touched a socket of the first; the
// doctor names the other one. Nobody's client notices.
func TestTwoNodesOfOneNumber(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.kept()
	l.fresh()
	l.datagrams()
	udp, quic := s.TCP.Port(), s.HTTPS.Port()
	for _, test := range []struct{ name, listener, reason string }{
		{"datagrams at one address", fmt.Sprintf(`{name: other, address: "127.0.0.1:%d", protocol: udp}`, udp), "takes datagrams on"},
		{"datagrams at every address", fmt.Sprintf(`{name: other, address: "0.0.0.0:%d", protocol: udp}`, udp), "takes datagrams on"},
		{"datagrams at HTTP/3's", fmt.Sprintf(`{name: other, address: "127.0.0.1:%d", protocol: udp}`, quic), "takes datagrams on"},
		{"HTTP/3 at datagrams'", fmt.Sprintf(`{name: other, address: "127.0.0.1:%d", protocol: https, http3: true, tls: {cert_file: cert.pem, key_file: key.pem}}`, udp), "takes datagrams on"},
		{"HTTP/3 at one address", fmt.Sprintf(`{name: other, address: "127.0.0.1:%d", protocol: https, http3: true, tls: {cert_file: cert.pem, key_file: key.pem}}`, quic), "listens on"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := writeSecond(t, test.listener)
			ctx, cancel := context.WithTimeout(t.Context(), node.Enough)
			defer cancel()
			cmd := exec.CommandContext(ctx, s.Executable(), "run", "--config", file)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 10 * time.Second
			out, err := cmd.CombinedOutput()
			if err == nil || ctx.Err() != nil || !strings.Contains(string(out), test.reason) || !strings.Contains(string(out), "the same node.server_id") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	// Elsewhere it may run: nothing of the two meets on this host. The doctor tells.
	file := writeSecond(t, fmt.Sprintf(`{name: other, address: "127.0.0.2:%d", protocol: udp}`, udp))
	out, err := exec.CommandContext(t.Context(), s.Executable(), "doctor", "--config", file, "-o", "json").Output() // its error may be of other findings
	var report struct {
		Findings []struct{ Name, Level, Found string }
	}
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	found := false
	for _, f := range report.Findings {
		found = found || f.Name == "number" && f.Level == "warn" && strings.Contains(f.Found, "77 is that of") && strings.Contains(f.Found, "the baton of "+filepath.Join(s.Dir, "run"))
	}
	if !found {
		t.Errorf("the doctor says nothing of the other: %+v", report.Findings)
	}
	l.wantNoneFailed()
}

func writeSecond(t *testing.T, listener string) (file string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "baton-test-second-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil { // for the generation's user
		t.Fatal(err)
	}
	if err := demo.WriteCertificate(dir, "second"); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "second.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, secondConfig, dir, listener), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
