package quic

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
)

// twoOrigins are what stands behind two generations: each has its own, which says
// its name. So a client that can show no header tells who served it.
type twoOrigins struct {
	*pair
	relay *relay // between the newest client and the node
}

const (
	first  = "first"
	second = "second"
)

// originNamed answers /lines/20 with as many lines of its name, slowly.
func originNamed(t *testing.T, name string) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := 1
		fmt.Sscan(path.Base(r.URL.Path), &n)
		for range n {
			fmt.Fprintln(w, name)
			http.NewResponseController(w).Flush()
			if n > 1 {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func startTwoOrigins(t *testing.T) *twoOrigins {
	t.Helper()
	o := startBetween(t, originNamed(t, first), originNamed(t, second))
	t.Cleanup(o.rollBack)
	return o
}

// startBetween starts a generation before the origin one, and another, ready, before two.
func startBetween(t *testing.T, one, two string) *twoOrigins {
	t.Helper()
	s := startSite(t, siteSettings{origin: one})
	p := s.pair(t, strings.NewReplacer(one, two))
	return &twoOrigins{pair: p}
}

// inHandshake makes a relay for the next client, and moves new flows from one
// generation to the other when its first datagram has been steered and its second
// has not. In a relay that had another client before, that one's last datagram
// could be taken for the first.
func (o *twoOrigins) inHandshake(from, to int) (done <-chan struct{}) {
	o.relay = newRelay(o.t, o.HTTPS.String())
	o.t.Cleanup(o.relay.close)
	o.flip(from)
	held, over := o.relay.holdAfter(1), make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-held:
			o.flip(to)
			o.relay.letGo()
		case <-time.After(node.Enough):
			o.t.Error("the client sends one datagram and no more")
		}
	}()
	return over
}

// unrest flips, and changes the client's address, until it is stopped.
func (o *twoOrigins) unrest(rebind bool) (stop func()) {
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
				o.flip(i % 2)
				if rebind {
					o.relay.rebind()
				}
			}
		}
	}()
	return func() { close(quit); <-over }
}

const lines = 40 // of a long download: some second

func want(t *testing.T, what, got, line string, n int) {
	t.Helper()
	if got != strings.Repeat(line+"\n", n) {
		t.Errorf("%s: %d octets, not %d lines of %q: %q", what, len(got), n, line, got)
	}
}

// TestXNet: a client on golang.org/x/net/quic, whose ClientHello takes two datagrams.
func TestXNet(t *testing.T) {
	o := startTwoOrigins(t)
	certificate, err := os.ReadFile(filepath.Join(o.Dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	secure := newLoad(t, "", "", certificate).secure
	secure.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	visit := func(from, to int, owner string, resumed bool) {
		t.Helper()
		shifted := o.inHandshake(from, to)
		c, err := dialXNet(ctx, o.relay.address(), secure)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		<-shifted
		stop := o.unrest(true)
		defer stop()
		for _, n := range []int{1, lines} {
			got, err := c.get(ctx, fmt.Sprintf("/lines/%d", n))
			if err != nil {
				t.Fatalf("of %s: %v", owner, err)
			}
			want(t, "x/net/quic", got, owner, n)
		}
		if c.resumed() != resumed {
			t.Errorf("of %s: resumed: %v", owner, c.resumed())
		}
	}
	visit(0, 1, first, false)
	visit(1, 0, second, true)
}

// TestGTLSClient: the client of ngtcp2, which begins a resumed connection with
// early data and moves to another address by itself.
func TestGTLSClient(t *testing.T) {
	need.Root(t, "a supervisor loads BPF programs")
	tool := need.Tool(t, "gtlsclient", "ngtcp2-client")
	o := startTwoOrigins(t)
	dir := t.TempDir()
	visit := func(what string, from, to int, owner string, n int, rebind bool, args ...string) (log string) {
		t.Helper()
		got := filepath.Join(dir, strconv.Itoa(n))
		os.Remove(got)
		shifted := o.inHandshake(from, to)
		host, port, _ := strings.Cut(o.relay.address(), ":")
		args = append(args, "--exit-on-all-streams-close", "--no-quic-dump", "--no-http-dump", "--handshake-timeout=30s", "--sni=demo.test",
			"--session-file="+dir+"/session", "--tp-file="+dir+"/parameters", "--download="+dir,
			host, port, fmt.Sprintf("https://demo.test/lines/%d", n))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, tool, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-shifted // whose the connection is has been decided
		stop := o.unrest(rebind)
		err := cmd.Wait()
		stop()
		if err != nil {
			t.Errorf("%s: %v\n%s", what, err, &out)
		}
		body, err := os.ReadFile(got)
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, &out)
		}
		want(t, what, string(body), owner, n)
		return out.String()
	}
	visit("handshake", 0, 1, first, 1, false)
	log := visit("resumption", 1, 0, second, 1, false)
	request, handshake := strings.Index(log, "submit request headers"), strings.Index(log, "QUIC handshake has completed")
	if request < 0 || handshake < request || strings.Contains(log, "rejected") {
		t.Errorf("the request was no early data, or was rejected:\n%s", log)
	}
	visit("rebinding", 0, 1, first, lines, true)
	visit("migration", 1, 0, second, lines, false, "--change-local-addr=300ms")
	visit("key update", 0, 1, first, lines, true, "--key-update=200ms")
}
