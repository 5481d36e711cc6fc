package quic

import (
	"strings"
	"testing"
)

// TestErrorsOverHTTP3 has a candidate answer every request with an error, of whose
// clients all speak HTTP/3: it is rolled back for that.
func TestErrorsOverHTTP3(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.fresh()
	l.fresh()
	bad := s.write(t, "bad", "{{.Origin.HTTPAddress}}", "127.0.0.1:1", "{window: {{.VerifyWindow}}}", "{window: 1m}")
	result, err := s.Release(t.Context(), bad)
	if err != nil {
		t.Fatal(err)
	}
	_, failed := l.finish()
	t.Logf("%s: %s; %d requests failed", result.Outcome, result.Reason, len(failed))
	if result.Outcome != "rolled_back" || !strings.Contains(result.Reason, "errors: ") {
		t.Errorf("%+v", result)
	}
}
