// Package quic replaces a proxy under clients of HTTP/3 and UDP. Which generation
// serves a connection is taken from what the application answers, never from the
// connection IDs that steer it.
//
// BATON_RELEASES is the number of releases of TestReleases, 5 without it; make
// quic sets that and more.
package quic

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

func TestMain(m *testing.M) { os.Exit(node.Main(m)) }

// site is a node with HTTP/3 and UDP, and what stands behind it.
type site struct {
	*demo.Node
	udp      string
	file     string // its configuration
	settings demo.Settings
}

const siteConfig = `node: {name: demo, server_id: 77}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: web, address: "{{.Node.HTTPS}}", protocol: https, http3: true, workers: 2, tls: {cert_file: cert.pem, key_file: key.pem}}
  - {name: dgram, address: "{{.Node.TCP}}", protocol: udp, workers: 2, idle_timeout: 1s}
  - {name: raw, address: "{{.Node.HTTP}}", protocol: tcp}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: dgram, listeners: [dgram], upstreams: [{name: echo}]}
  - {name: raw, listeners: [raw], upstreams: [{name: stream}]}
upstreams:
  - {name: origin, endpoints: ["ORIGIN"]}
  - {name: echo, endpoints: ["UDPECHO"]}
  - {name: stream, endpoints: ["{{.Origin.EchoAddress}}"]}
release:
  drain_timeout: {{.DrainTimeout}}
  max_generations: {{.MaxGenerations}}
  verify: {window: {{.VerifyWindow}}}
shutdown: {lead: 0s}
`

// siteSettings is what a test wants otherwise.
type siteSettings struct {
	unsteered bool
	drain     time.Duration // 0: longer than any operation, since what a drain ends at its deadline is no failure of steering
	origin    string        // empty: the demo's
	idKeys    string        // the file of keys of connection IDs; empty: none
}

func startSite(t *testing.T, want siteSettings) *site {
	t.Helper()
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 64<<10)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			echo.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { echo.Close(); <-ended })
	ids := ""
	if want.idKeys != "" {
		ids = fmt.Sprintf("connection_ids: {key_file: %s}\n", want.idKeys)
	}
	settings := demo.Settings{
		Config:       ids + strings.NewReplacer("UDPECHO", echo.LocalAddr().String(), "ORIGIN", cmp.Or(want.origin, "{{.Origin.HTTPAddress}}")).Replace(siteConfig),
		Unsteered:    want.unsteered,
		DrainTimeout: cmp.Or(want.drain, 30*time.Second), VerifyWindow: 100 * time.Millisecond,
	}
	n := node.Start(t, demo.Place{}, settings)
	return &site{Node: n, udp: n.TCP.String(), file: filepath.Join(n.Dir, "first.yaml"), settings: settings}
}

// write makes another file, in which each even word of the first is replaced by
// the one behind it.
func (s *site) write(t *testing.T, name string, replace ...string) string {
	t.Helper()
	changed := s.settings
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(changed.Config, replace[i]) {
			t.Fatalf("the configuration has no %q", replace[i])
		}
		changed.Config = strings.ReplaceAll(changed.Config, replace[i], replace[i+1])
	}
	file, err := s.WriteConfig(name, changed)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func (s *site) load(t *testing.T) *load {
	t.Helper()
	certificate, err := os.ReadFile(filepath.Join(s.Dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return newLoad(t, s.HTTPS.String(), s.udp, certificate)
}

func releases(t *testing.T, usual int) int {
	t.Helper()
	if text := os.Getenv("BATON_RELEASES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return usual
}

// release replaces the generation by another of the same configuration.
func (s *site) release(t *testing.T, what string) {
	t.Helper()
	s.releaseTo(t, s.file, what)
}

func (s *site) releaseTo(t *testing.T, file, what string) {
	t.Helper()
	result, err := s.Release(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode != 0 {
		t.Fatalf("%s: %s: %s", what, result.Outcome, result.Reason)
	}
}

// TestReleases releases in a row under every kind of client of HTTP/3 and UDP:
// none fails, and every connection stays with its generation for life.
func TestReleases(t *testing.T) {
	n := releases(t, 5)
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.all(1500)
	for i := range n {
		time.Sleep(300 * time.Millisecond)
		s.release(t, fmt.Sprintf("release %d of %d", i+1, n))
	}
	done, failed := l.finish()
	sum := 0
	for _, kind := range slices.Sorted(maps.Keys(done)) {
		t.Logf("%-20s %d", kind, done[kind])
		sum += done[kind]
	}
	t.Logf("%d releases, %d operations, %d failed", n, sum, len(failed))
	if status, err := s.Status(t.Context()); err != nil || status.Drained.Undeclared > 0 {
		t.Errorf("%+v, %v: generations have ended and left flows open", status.Drained, err)
	}
	for _, f := range failed {
		t.Error(f)
	}
	if len(done) != 7 {
		t.Errorf("%d kinds of clients have done anything", len(done))
	}
}

// TestReleasesWithoutSteeringFail is the control group: the same run loses
// connections where the kernel's hash decides. Its IDs are encrypted, so that
// generations have to read those of others by the keys of the node.
func TestReleasesWithoutSteeringFail(t *testing.T) {
	s := startSite(t, siteSettings{unsteered: true, drain: 10 * time.Second, idKeys: newKeyFile(t, "1 encode").path}) // connections are left of which nobody hears the end
	l := s.load(t)
	l.patience = 5 * time.Second // an answer that does not come is what is shown here
	for range 12 {               // of which each moves to another socket three times in four
		l.kept()
	}
	var found []string
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		result, err := s.Release(t.Context(), s.file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(result.Reason, "strays: ") {
			found = append(found, result.Reason)
		}
	}
	time.Sleep(500 * time.Millisecond)
	done, failed := l.finish()
	t.Logf("%v operations, %d failed", done, len(failed))
	if len(failed) == 0 {
		t.Error("nothing failed: the test above proves nothing")
	}
	t.Logf("%q", found)
	if len(found) == 0 {
		t.Error("no release was rolled back for the packets that went astray")
	}
}

// kill ends a generation, by its number, with SIGKILL.
func kill(t *testing.T, s *site, generation string) {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range status.Generations {
		if strconv.Itoa(g.ID) == generation {
			if err := syscall.Kill(g.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("there is no generation %s: %+v", generation, status.Generations)
}

// TestKilledGeneration: clients of a generation that dies are told at once by a
// stateless reset, and others notice nothing.
func TestKilledGeneration(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	victim, other := l.client(l.secure), l.client(l.secure)
	defer victim.end()
	defer other.end()
	if _, err := victim.do("GET", "/small", nil); err != nil {
		t.Fatal(err)
	}
	s.release(t, "release")
	if _, err := other.do("GET", "/small", nil); err != nil {
		t.Fatal(err)
	}
	conn := victim.last.Load()
	first := victim.owners[conn]
	kill(t, s, first)

	// The client speaks, and hears that its connection is gone.
	begin := time.Now()
	victim.do("GET", "/small", nil)
	node.Eventually(t, "the reset", func() bool { return conn.Context().Err() != nil })
	t.Logf("told after %v: %v", time.Since(begin), fmt.Sprint(conn.Context().Err()))
	if _, err := victim.do("GET", "/small", nil); err != nil {
		t.Errorf("after it has connected again: %v", err)
	}
	if second := victim.owners[victim.last.Load()]; second == first {
		t.Errorf("generation %s answers though it was killed", first)
	}
	if _, err := other.do("GET", "/small", nil); err != nil || len(other.owners) != 1 {
		t.Errorf("a connection of another generation: %v, %d connections", err, len(other.owners))
	}
	node.Eventually(t, "its connection is counted as one that it left open", func() bool {
		status, err := s.Status(t.Context())
		return err == nil && status.Drained.Undeclared == 1
	})
}

// TestSupervisorKilled: no client notices, neither while nobody supervises nor when
// the next supervisor adopts what serves, and releases; also where there is no BPF
// file system, so that it finds no tables.
func TestSupervisorKilled(t *testing.T) {
	for _, test := range []struct {
		name   string
		tables bool
	}{{"tables are left", true}, {"nothing is pinned", false}} {
		t.Run(test.name, func(t *testing.T) { killSupervisor(t, test.tables) })
	}
}

func killSupervisor(t *testing.T, tables bool) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.fresh()
	l.kept()
	l.kept()
	l.datagrams()
	time.Sleep(300 * time.Millisecond)
	s.Kill()
	if !tables {
		node.Unpin(t, filepath.Join(s.Dir, "run"))
	}
	time.Sleep(300 * time.Millisecond)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	// The account of flows has a gap where it was not pinned: no release is judged by it.
	result, err := s.Release(t.Context(), s.file)
	if err != nil || result.Outcome != "passed" && (tables || result.Outcome != "inconclusive") {
		t.Fatalf("a release after the adoption: %+v, %v", result, err)
	}
	// A stranger hears nothing, as before: there is a sink.
	c, err := net.Dial("udp", s.HTTPS.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			t.Errorf("a stranger is answered: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	done, failed := l.finish()
	t.Logf("%v operations, %d failed", done, len(failed))
	for _, f := range failed {
		t.Error(f)
	}
}
