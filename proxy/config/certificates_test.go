package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// certificate makes a certificate that ends at a moment, and its key, as PEM.
func certificate(t *testing.T, end time.Time) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "a.example"},
		DNSNames:     []string{"a.example"},
		NotBefore:    end.Add(-30 * 24 * time.Hour),
		NotAfter:     end,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// secure is a file with an https listener whose tls is as given.
func secure(tls string) string {
	return fmt.Sprintf(`listeners:
  - {name: edge, address: "127.0.0.1:8443", protocol: https%s}
routes:
  - {name: all, listeners: [edge], upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["127.0.0.1:9001"]}
`, tls)
}

const byName = ", tls: {cert_file: tls/cert.pem, key_file: tls/key.pem}"

// site writes a configuration and its certificate files, and returns its path.
func site(t *testing.T, text, cert, key string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "tls"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"baton.yaml": text, "tls/cert.pem": cert, "tls/key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "baton.yaml")
}

func TestCertificatesAreHandedOver(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(365*24*time.Hour))
	file := site(t, secure(byName), cert, key)
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(file)
	want := TLS{filepath.Join(dir, "tls/cert.pem"), filepath.Join(dir, "tls/key.pem"), cert, Secret(key)}
	if got := c.Listeners[0].TLS; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if got := c.CertificateFiles(); !reflect.DeepEqual(got, map[string]string{want.CertFile: cert, want.KeyFile: key}) {
		t.Errorf("files %q", got)
	}

	shown, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(shown), "PRIVATE KEY") || strings.Contains(fmt.Sprintf("%v %+v %#v", c, c, c), "PRIVATE KEY") {
		t.Errorf("the private key is shown:\n%s", shown)
	}
	if again := parse(t, string(shown)); !reflect.DeepEqual(c, again) {
		t.Errorf("from what is shown: %+v, want %+v", again, c)
	}

	handed, err := c.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	// The generation may not read the files; here they are not even there.
	if err := os.RemoveAll(filepath.Join(dir, "tls")); err != nil {
		t.Fatal(err)
	}
	if again, err := Receive("configuration", handed); err != nil || !reflect.DeepEqual(c, again) {
		t.Errorf("from what is handed over: %+v, %v; want %+v", again, err, c)
	}
}

// A key in the file itself is not printed either.
func TestInlineKeyIsHidden(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(365*24*time.Hour))
	c := parse(t, secure(fmt.Sprintf(", tls: {certificate: %q, private_key: %q}", cert, key)))
	shown, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if text := string(shown); strings.Contains(text, "PRIVATE KEY") || !strings.Contains(text, "(hidden)") {
		t.Errorf("shown:\n%s", shown)
	}
	if _, err := c.Listeners[0].TLS.KeyPair(); err != nil {
		t.Errorf("printing has changed the configuration: %v", err)
	}
}

func TestCertificateMistakes(t *testing.T) {
	cert, key := certificate(t, time.Now().Add(365*24*time.Hour))
	_, other := certificate(t, time.Now().Add(365*24*time.Hour))
	for _, test := range []struct {
		name, tls, cert, key string
		want                 string // DIR stands for the directory
	}{
		{"none", "", cert, key,
			"DIR/baton.yaml:2: listeners[0].tls: is missing (write {cert_file: cert.pem, key_file: key.pem})"},
		{"no key", ", tls: {cert_file: tls/cert.pem}", cert, key,
			"DIR/baton.yaml:2: listeners[0].tls.key_file: is missing (name the file of the certificate's private key)"},
		{"no certificate", ", tls: {key_file: tls/key.pem}", cert, key,
			"DIR/baton.yaml:2: listeners[0].tls.cert_file: is missing (name the file of the certificate)"},
		{"no such file", ", tls: {cert_file: cert.pem, key_file: tls/key.pem}", cert, key,
			"DIR/baton.yaml:2: listeners[0].tls.cert_file: cannot read \"DIR/cert.pem\": no such file or directory (a relative path begins at the directory of DIR/baton.yaml)"},
		{"directory", ", tls: {cert_file: tls, key_file: tls/key.pem}", cert, key,
			"DIR/baton.yaml:2: listeners[0].tls.cert_file: cannot read \"DIR/tls\": no regular file"},
		{"not a certificate", byName, "hello", key,
			"DIR/baton.yaml:2: listeners[0].tls.cert_file: holds no certificate (write PEM: -----BEGIN CERTIFICATE-----)"},
		{"not a key", byName, cert, cert,
			"DIR/baton.yaml:2: listeners[0].tls.key_file: holds no private key (write PEM without a passphrase: -----BEGIN PRIVATE KEY-----)"},
		{"empty key", byName, cert, "",
			"DIR/baton.yaml:2: listeners[0].tls.key_file: holds no private key (write PEM without a passphrase: -----BEGIN PRIVATE KEY-----)"},
		{"another's key", byName, cert, other,
			"DIR/baton.yaml:2: listeners[0].tls.key_file: is not the key of the certificate (of several certificates, the key's own comes first)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := site(t, secure(test.tls), test.cert, test.key)
			_, err := Load(file)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := strings.ReplaceAll(err.Error(), filepath.Dir(file), "DIR"); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	plain := strings.Replace(secure(byName), "https", "http", 1)
	want := "baton.yaml:2: listeners[0].tls: has no meaning for http (leave it out, or write protocol: https)"
	if _, err := Parse("baton.yaml", []byte(plain), nil); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestWarnings(t *testing.T) {
	end := time.Now().Add(20 * 24 * time.Hour)
	cert, key := certificate(t, end)
	c := parse(t, secure(fmt.Sprintf(", tls: {certificate: %q, private_key: %q}", cert, key)))
	day := func(t time.Time) string { return t.UTC().Truncate(time.Second).Format(time.RFC3339) }
	begin := end.Add(-30 * 24 * time.Hour)
	for _, test := range []struct {
		now  time.Time
		want []string
	}{
		{begin.Add(-time.Hour), []string{"listener edge: the certificate is not valid before " + day(begin)}},
		{begin.Add(time.Hour), nil},
		{end.Add(-time.Hour), []string{"listener edge: the certificate expires on " + day(end)}},
		{end.Add(time.Hour), []string{"listener edge: the certificate expired on " + day(end)}},
	} {
		if got := c.Warnings(test.now); !reflect.DeepEqual(got, test.want) {
			t.Errorf("at %v: %q, want %q", test.now, got, test.want)
		}
	}
}
