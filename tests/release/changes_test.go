package release

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// changing is a configuration whose listeners differ from release to release. The
// clients' own stay where they are, whatever they are called.
const changing = `node: {name: demo, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: %[1]s, address: "{{.Node.HTTP}}", protocol: http, workers: %[2]d, backlog: %[3]d, worker_choice: %[4]s}
  - {name: edge, address: "{{.Node.HTTPS}}", protocol: https, workers: %[2]d, backlog: %[3]d, tls: {cert_file: %[5]s/cert.pem, key_file: %[5]s/key.pem}}
  - {name: raw, address: "{{.Node.TCP}}", protocol: tcp, workers: %[2]d, backlog: %[3]d}
%[6]sroutes:
  - {name: all, listeners: [%[1]s, edge], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: grpc, listeners: [%[1]s, edge], match: {path_prefix: /demo.Echo/}, upstreams: [{name: grpc}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
%[7]supstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: grpc, protocol: h2c, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: echo, endpoints: ["{{.Origin.EchoAddress}}"]}
release: {drain_timeout: {{.DrainTimeout}}, max_generations: {{.MaxGenerations}}, verify: {window: {{.VerifyWindow}}}}
steering: bpf
shutdown: {lead: 0s}
`

// variant is one configuration of a node that changes.
type variant struct {
	web         string // the name of the first listener
	workers     int
	backlog     int
	choice      string
	certificate string // directory
	extra       string // address of one more listener; empty: there is none
	called      string // its name
}

func (v variant) config() string {
	listener, route := "", ""
	if v.extra != "" {
		listener = fmt.Sprintf("  - {name: %s, address: %q, protocol: http}\n", v.called, v.extra)
		route = fmt.Sprintf("  - {name: %s, listeners: [%s], match: {path_prefix: /}, upstreams: [{name: origin}]}\n", v.called, v.called)
	}
	return fmt.Sprintf(changing, v.web, v.workers, v.backlog, v.choice, v.certificate, listener, route)
}

// TestReleasesThatChangeListeners releases under every kind of client, and each
// release changes something of the listeners: one is added, moves, gets another
// name, is removed; those that stay get another name, other workers, another
// backlog, another certificate. Nobody at those that stay may notice.
func TestReleasesThatChangeListeners(t *testing.T) {
	needTools(t)
	n := releases(t, 8)
	var first, second string // directories of certificates
	at := here
	at.prepare = func(n *demo.Node, l *demo.Load) {
		first, second = n.Dir, filepath.Join(n.Dir, "second")
		if err := os.Mkdir(second, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := demo.WriteCertificate(second, "second"); err != nil {
			t.Fatal(err)
		}
		pem, err := os.ReadFile(filepath.Join(second, "cert.pem"))
		if err != nil || !l.Roots.AppendCertsFromPEM(pem) {
			t.Fatalf("the second certificate: %v", err)
		}
	}
	run := startRun(t, at, demo.Settings{})
	defer run.finish()
	one := fmt.Sprintf("127.0.0.2:%d", portForAll(t))
	other := fmt.Sprintf("127.0.0.2:%d", portForAll(t))
	for i := range n {
		v := variant{web: "web", workers: 1 + rand.IntN(4), backlog: 256 << rand.IntN(4), choice: []string{"hash", "cpu"}[i%2], certificate: first}
		if i%3 == 1 {
			v.web = "front"
		}
		if i%4 >= 2 {
			v.certificate = second
		}
		switch i % 4 { // added, moved, renamed, removed
		case 0:
			v.extra, v.called = one, "more"
		case 1:
			v.extra, v.called = other, "more"
		case 2:
			v.extra, v.called = other, "another"
		}
		settings := run.settings
		settings.Config = v.config()
		file, err := run.node.WriteConfig(fmt.Sprintf("candidate-%d", i), settings)
		if err != nil {
			t.Fatal(err)
		}
		run.file = file
		run.release(t, false)
		for _, address := range []string{one, other} {
			if err := answersOrNot(address, address == v.extra); err != nil {
				t.Errorf("release %d, %+v: %v", i+1, v, err)
			}
		}
	}
	run.check(t, n)
}

// answersOrNot asks at a listener that is there, or tries to connect to one that
// has been taken away.
func answersOrNot(address string, there bool) error {
	if !there {
		conn, err := net.DialTimeout("tcp", address, node.Enough)
		if err == nil {
			conn.Close()
			return fmt.Errorf("%s, which no configuration has any more, takes connections", address)
		}
		return nil
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: node.Enough}).Get("http://" + address + "/small?seed=1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", address, resp.Status)
	}
	return nil
}
