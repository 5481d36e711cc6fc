package release

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestCertificateIsReplaced renews a certificate on disk: the node releases by
// itself, new connections see the new one, and requests go on meanwhile, over
// HTTP/2 and over HTTP/1.1. A session of the generation before is resumed by the
// one after.
func TestCertificateIsReplaced(t *testing.T) {
	n := node.Start(t, demo.Place{}, demo.Settings{})
	url := "https://" + n.HTTPS.String() + "/small?seed=1"
	config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	get := func(http2 bool) (*tls.ConnectionState, error) {
		transport := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: http2}
		transport.TLSClientConfig.ClientSessionCache = config.ClientSessionCache
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport, Timeout: node.Enough}).Get(url)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK || (resp.ProtoMajor == 2) != http2 {
			return nil, fmt.Errorf("%s %s: %v", resp.Proto, resp.Status, err)
		}
		return resp.TLS, nil
	}
	first, err := get(true)
	if err != nil || first.DidResume || first.PeerCertificates[0].Subject.CommonName != "first" {
		t.Fatalf("%+v, %v", first, err)
	}

	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := n.Release(t.Context(), file); err != nil || r.Outcome != "passed" {
		t.Fatalf("%+v, %v", r, err)
	}
	if again, err := get(true); err != nil || !again.DidResume {
		t.Errorf("generation 2 did not resume a session of generation 1: %v", err)
	}

	if err := demo.WriteCertificate(n.Dir, "second"); err != nil {
		t.Fatal(err)
	}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	asked := 0
	node.Eventually(t, "the new certificate", func() bool {
		asked++
		state, err := get(asked%2 == 0)
		if err != nil {
			t.Error(err)
			return true
		}
		config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		return state.PeerCertificates[0].Subject.CommonName == "second"
	})
}
