package quic

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
)

// visits is how many requests the page makes, one after the other.
const visits = 30

// page asks who serves it, again and again, and shows the answers and by which
// protocol each came.
const page = `<!doctype html><body><script>
var owners = [];
for (var i = 0; i < %d; i++) {
	var x = new XMLHttpRequest();
	x.open('GET', '/who/' + i, false);
	x.send();
	owners.push(x.responseText);
}
var protocols = performance.getEntriesByType('resource').map(function (e) { return e.nextHopProtocol; });
document.body.textContent = JSON.stringify({owners: owners, protocols: protocols});
</script></body>`

// originOfPage serves the page, and tells before which visit it is about to answer.
func originOfPage(t *testing.T, name string, at func(visit int)) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		var visit int
		if n, _ := fmt.Sscanf(r.URL.Path, "/who/%d", &visit); n == 0 {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, page, visits)
			return
		}
		at(visit)
		fmt.Fprint(w, name)
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestChromium has a page of Chromium ask for its origin while new flows go over:
// between the two datagrams of its handshake, and for good while a request is under
// way. Its address changes again and again. The first generation's drain then sends
// it to the second, where it resumes the session.
func TestChromium(t *testing.T) {
	if os.Getenv("BATON_TEST_CHROMIUM") == "" {
		t.Skip("needs Chromium, which is large: make quic")
	}
	tool := need.Tool(t, "chromium", "chromium")
	var o *twoOrigins
	at := func(visit int) {
		o.relay.rebind()
		if visit != visits/3 {
			return
		}
		o.tables.SetShift(0, o.was)
		if _, err := admin.Dial(o.Socket()).Resume(t.Context()); err != nil {
			t.Errorf("resume the release: %v", err)
		}
		// The browser is told to go by the generation that it has a request with.
		for end := time.Now().Add(node.Enough); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if status, err := o.Status(t.Context()); err == nil && status.Draining(1) {
				time.Sleep(2 * time.Second) // and by GOAWAY when no handshake is under way
				return
			}
		}
		t.Error("the first generation does not drain")
	}
	one, two := originOfPage(t, first, at), originOfPage(t, second, func(int) { o.relay.rebind() })
	o = startBetween(t, one, two)
	shifted := o.inHandshake(0, 1)
	log := filepath.Join(t.TempDir(), "net.json")
	cmd := exec.CommandContext(t.Context(), tool, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--user-data-dir="+t.TempDir(), "--enable-quic", "--origin-to-force-quic-on=demo.test:443",
		"--host-resolver-rules=MAP demo.test:443 "+o.relay.address(), "--ignore-certificate-errors-spki-list="+spki(t, o.Dir),
		"--log-net-log="+log, "--dump-dom", "https://demo.test/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	<-shifted
	_, text, _ := strings.Cut(string(out), "<body>")
	text, _, _ = strings.Cut(text, "</body>")
	var seen struct{ Owners, Protocols []string }
	if err := json.Unmarshal([]byte(text), &seen); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("%v", seen.Owners)
	owners := strings.Join(seen.Owners, " ")
	before, after := strings.Count(owners, first), strings.Count(owners, second)
	if len(seen.Owners) != visits || before <= visits/3 || after == 0 ||
		owners != strings.TrimSpace(strings.Repeat(first+" ", before)+strings.Repeat(second+" ", after)) {
		t.Errorf("the page was served by %s", owners)
	}
	for _, p := range seen.Protocols {
		if p != "h3" {
			t.Errorf("a visit went by %s", p)
		}
	}
	sessions := strings.Join(zeroRTT(t, log), " ")
	t.Logf("0-RTT by session: %s", sessions)
	if sessions != "NotAttempted AttemptedAndSucceeded" {
		t.Errorf("the session was not resumed with the other generation: %s", sessions)
	}
}

// spki is what Chromium knows a certificate by.
func spki(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// zeroRTT reads from Chromium's log what became of early data, by session of QUIC.
func zeroRTT(t *testing.T, file string) (states []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Constants struct{ LogEventTypes map[string]int }
		Events    []struct {
			Type   int
			Params struct{ State string }
		}
	}
	if err := json.Unmarshal(text, &log); err != nil {
		t.Fatalf("Chromium's log: %v", err)
	}
	for _, e := range log.Events {
		if e.Type == log.Constants.LogEventTypes["QUIC_SESSION_ZERO_RTT_STATE"] {
			states = append(states, e.Params.State)
		}
	}
	return states
}
