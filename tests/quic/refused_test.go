package quic

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// TestRefused: a release that could not serve QUIC, or would lose who has
// connections, changes nothing.
func TestRefused(t *testing.T) {
	s := startSite(t, siteSettings{})
	other := t.TempDir()
	if err := demo.WriteCertificate(other, "other"); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(other, "damaged.pem")
	if err := os.WriteFile(damaged, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	l := s.load(t)
	l.kept()
	l.fresh()
	for _, test := range []struct{ what, old, new, reason string }{
		{"no key", "key_file: key.pem", "key_file: absent.pem", "absent.pem"},
		{"another certificate's key", "key_file: key.pem", "key_file: " + filepath.Join(other, "key.pem"), "key"},
		{"no key in the file", "key_file: key.pem", "key_file: " + damaged, "no private key"},
		{"another number", "server_id: 77", "server_id: 78", "needs a restart of the supervisor"},
	} {
		file := filepath.Join(s.Dir, "refused.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(string(text), test.old, test.new, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		result, err := s.Release(t.Context(), file)
		if err != nil {
			t.Errorf("%s: %v", test.what, err)
			continue
		}
		if result.ExitCode != 5 || !strings.Contains(result.Reason, test.reason) {
			t.Errorf("%s: %+v", test.what, result)
		}
		t.Logf("%s: %s", test.what, result.Reason)
	}
	l.wantNoneFailed()
	if len(l.answered) != 1 {
		t.Errorf("answers by generation: %v", l.answered)
	}
}

// TestAnotherNumberAfterAdoption: the connections that a supervisor finds go on
// with the number they have, and no generation of another one begins beside them.
func TestAnotherNumberAfterAdoption(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.kept()
	l.fresh()
	time.Sleep(300 * time.Millisecond)
	s.Kill()
	text, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, []byte(strings.Replace(string(text), "server_id: 77", "server_id: 78", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	result, err := s.Release(t.Context(), s.file)
	if err != nil {
		t.Fatal(err)
	}
	if result.ExitCode != 5 || !strings.Contains(result.Reason, "let all generations end") {
		t.Errorf("%+v", result)
	}
	l.wantNoneFailed()
}
