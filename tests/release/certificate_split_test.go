package release

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

const twoCertified = `node: {name: demo, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
  - {name: edge, address: "{{.Node.HTTPS}}", protocol: https, tls: {cert_file: cert.pem, key_file: key.pem}}
  - {name: other, address: "{{.Node.TCP}}", protocol: https, tls: {cert_file: cert.pem, key_file: key.pem}}
routes:
  - {name: all, listeners: [web, edge, other], match: {path_prefix: /}, upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
release: {verify: {window: 50ms}}
shutdown: {lead: 0s}
`

// Where listeners are split among generations, a certificate that is renewed reaches
// each listener that has it, and they stay split.
func TestCertificateIsReplacedWhileSplit(t *testing.T) {
	settings := demo.Settings{Config: twoCertified}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(at netip.AddrPort) string {
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: node.Enough}, Config: &tls.Config{InsecureSkipVerify: true}}
		conn, err := dialer.DialContext(t.Context(), "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	owners := func() map[string]int {
		st, err := n.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]int{}
		for _, l := range st.Listeners {
			all[l.Name] = l.Generation
		}
		return all
	}
	if r, err := n.ReleaseOf(t.Context(), file, "100%", "edge"); err != nil || r.Outcome != "passed" {
		t.Fatalf("%+v, %v", r, err)
	}
	before := owners()
	if err := demo.WriteCertificate(n.Dir, "second"); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "both listeners have the new certificate", func() bool {
		return shown(n.HTTPS) == "second" && shown(n.TCP) == "second"
	})
	node.Eventually(t, "the releases have ended", func() bool {
		st, err := n.Status(t.Context())
		return err == nil && st.Release == nil
	})
	if after := owners(); after["edge"] == before["edge"] || after["other"] == before["other"] || after["edge"] == after["other"] || after["web"] != after["other"] {
		t.Errorf("listeners were of %v and are of %v", before, after)
	}

	// One alone has another renewed: who has the others is left in peace.
	if r, err := n.ReleaseOf(t.Context(), file, "100%", "other"); err != nil || r.Outcome != "passed" {
		t.Fatalf("%+v, %v", r, err)
	}
	web := owners()["web"]
	if err := demo.WriteCertificate(n.Dir, "third"); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, "both listeners have the third certificate", func() bool {
		return shown(n.HTTPS) == "third" && shown(n.TCP) == "third"
	})
	if now := owners()["web"]; now != web {
		t.Errorf("web has no certificate, was of generation %d and is of %d", web, now)
	}
}
