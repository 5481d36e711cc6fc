package demo

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
	"time"
)

// serverName is what the clients want the certificate to be of.
const serverName = "demo.test"

// WriteCertificate makes a certificate that signs itself, with a common name to
// tell it by, and puts it and its key, which root alone may read, where a node
// looks for them: cert.pem and key.pem in a directory.
func WriteCertificate(dir, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	// The certificate last, since a reader looks at both when it changes.
	for _, f := range []struct {
		name  string
		block pem.Block
	}{{"key.pem", pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}}, {"cert.pem", pem.Block{Type: "CERTIFICATE", Bytes: der}}} {
		if err := os.WriteFile(filepath.Join(dir, f.name), pem.EncodeToMemory(&f.block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// roots trusts the certificate in a directory, and no other.
func roots(dir string) (*x509.CertPool, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate", filepath.Join(dir, "cert.pem"))
	}
	return pool, nil
}
