package proxy_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/keys"
)

// A client resumes with one generation the session that it has of another, also
// across a rotation of the keys, and only if the generations share them.
func TestSessionsAreResumedOverGenerations(t *testing.T) {
	web := origin(t, hello)
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { page.Close() })
	shared := func(o *proxy.Options) {
		r, err := keys.Open(page.FD())
		if err != nil {
			t.Fatal(err)
		}
		o.Keys = r
		t.Cleanup(func() { r.Close() })
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			client := clientTLS()
			client.MinVersion, client.MaxVersion = version, version
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			resumed := func(n *node) bool {
				t.Helper()
				transport := &http.Transport{TLSClientConfig: client, DisableKeepAlives: true}
				res, err := (&http.Client{Transport: transport}).Get("https://" + n.web)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				io.ReadAll(res.Body) // tickets of TLS 1.3 come with the response
				return res.TLS.DidResume
			}
			first := startWith(t, shared, web, "", https)
			if resumed(first) {
				t.Fatal("resumed what was never begun")
			}
			if !resumed(first) {
				t.Fatal("not resumed with the same generation")
			}
			second := startWith(t, shared, web, "", https)
			if !resumed(second) {
				t.Error("not resumed with the next generation")
			}
			page.Rotate(time.Now())
			if !resumed(second) || !resumed(first) {
				t.Error("not resumed after a rotation")
			}
			for range keys.MaxTickets {
				page.Rotate(time.Now())
			}
			if resumed(first) {
				t.Error("resumed under a key that is gone")
			}
			if resumed(start(t, web, "", https)) {
				t.Error("resumed with a generation that shares no keys")
			}
		})
	}
}
