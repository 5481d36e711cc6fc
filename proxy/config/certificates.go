package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxPEM bounds a certificate file, in bytes: whoever names the wrong one must
// not fill the memory.
const maxPEM = 1 << 20

// readCertificates replaces the names of files by what they hold, and makes
// the names absolute. Many listeners may share a file: it is read once, so that
// they show the same certificate.
func readCertificates(r *report, c *Config, dir string) {
	read := map[string]string{}
	load := func(path string, file *string) string {
		if *file == "" {
			return ""
		}
		*file = absolute(dir, *file)
		text, ok := read[*file]
		if !ok {
			var err error
			if text, err = readPEM(*file); err != nil {
				hint := ""
				if errors.Is(err, fs.ErrNotExist) {
					hint = "a relative path begins at the directory of " + r.file
				}
				r.refuse(path, "cannot read "+strconv.Quote(*file)+": "+cause(err).Error(), hint)
				return ""
			}
			read[*file] = text
		}
		return text
	}
	for i := range c.Listeners {
		t, path := &c.Listeners[i].TLS, item("listeners", i)+".tls"
		if c.Listeners[i].Protocol != HTTPS || t.Certificate != "" || t.PrivateKey != "" {
			continue // handed over with what the files held
		}
		t.Certificate = load(path+".cert_file", &t.CertFile)
		t.PrivateKey = Secret(load(path+".key_file", &t.KeyFile))
	}
}

// absolute is a path that begins at dir where it is relative.
func absolute(dir, file string) string {
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	if abs, err := filepath.Abs(file); err == nil {
		return abs
	}
	return file
}

func readPEM(file string) (string, error) {
	// Nothing but a regular file: opening a pipe would wait for a writer.
	switch info, err := os.Stat(file); {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", errors.New("no regular file")
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err == nil && len(text) > maxPEM {
		err = errors.New("more than 1 MiB")
	}
	return string(text), err
}

// cause is an error without the operation and the path, which the mistake names.
func cause(err error) error {
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// printable is t without what nobody may see, or would want to.
func (t TLS) printable() TLS {
	if t.PrivateKey != "" {
		t.PrivateKey = Secret(t.PrivateKey.String())
	}
	if t.CertFile != "" {
		t.Certificate, t.PrivateKey = "", ""
	}
	return t
}

// KeyPair is the certificate and its key, ready for use.
func (t TLS) KeyPair() (tls.Certificate, error) {
	return tls.X509KeyPair([]byte(t.Certificate), []byte(t.PrivateKey))
}

// CertificateFiles are the files that the certificates and keys of listeners, all or
// those named, were read from, with what they held then: when one changes, a release
// brings the change to the clients.
func (c *Config) CertificateFiles(of ...string) map[string]string {
	files := map[string]string{}
	for _, l := range c.Listeners {
		if t := l.TLS; t.CertFile != "" && (len(of) == 0 || slices.Contains(of, l.Name)) {
			files[t.CertFile] = t.Certificate
			files[t.KeyFile] = string(t.PrivateKey)
		}
	}
	return files
}

// soon is how long before its end a certificate is worth a warning.
const soon = 7 * 24 * time.Hour

// Warnings says what is no mistake but worth knowing: certificates that clients
// refuse, or will within a week. Refusing them here would take the other
// listeners down with the one, at the next start. And keys of connection IDs none of
// which is used.
func (c *Config) Warnings(now time.Time) []string {
	warnings := c.idKeyWarnings()
	for _, l := range c.Listeners {
		if l.Protocol != HTTPS {
			continue
		}
		pair, err := l.TLS.KeyPair()
		if err != nil {
			continue // a mistake, and told as one
		}
		name, day := "listener "+l.Name+": the certificate ", func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
		switch leaf := pair.Leaf; {
		case now.Before(leaf.NotBefore):
			warnings = append(warnings, name+"is not valid before "+day(leaf.NotBefore))
		case now.After(leaf.NotAfter):
			warnings = append(warnings, name+"expired on "+day(leaf.NotAfter))
		case now.Add(soon).After(leaf.NotAfter):
			warnings = append(warnings, name+"expires on "+day(leaf.NotAfter))
		}
	}
	return warnings
}

// tls checks the certificate of an https listener, and that no other has one.
func (v validator) tls(path string, l Listener) {
	t := l.TLS
	switch {
	case !slices.Contains(protocols, l.Protocol):
	case l.Protocol != HTTPS:
		if t != (TLS{}) {
			v.add(path, fmt.Sprintf("has no meaning for %s", l.Protocol), "leave it out, or write protocol: https")
		}
	case t == (TLS{}):
		v.add(path, "is missing", "write {cert_file: cert.pem, key_file: key.pem}")
	default:
		v.keyPair(path, t)
	}
}

func (v validator) keyPair(path string, t TLS) {
	certificate, key := path+".cert_file", path+".key_file"
	if t.CertFile == "" && t.Certificate != "" {
		certificate, key = path+".certificate", path+".private_key"
	}
	_, err := t.KeyPair()
	switch {
	case err == nil || v.isRefused(certificate) || v.isRefused(key):
	case t.Certificate == "" && t.CertFile == "":
		v.add(certificate, "is missing", "name the file of the certificate")
	case t.PrivateKey == "" && t.KeyFile == "":
		v.add(key, "is missing", "name the file of the certificate's private key")
	case !beginsWithCertificate(t.Certificate):
		v.add(certificate, "holds no certificate", "write PEM: -----BEGIN CERTIFICATE-----")
	case strings.Contains(err.Error(), "does not match"):
		v.add(key, "is not the key of the certificate", "of several certificates, the key's own comes first")
	default:
		v.add(key, "holds no private key", "write PEM without a passphrase: -----BEGIN PRIVATE KEY-----")
	}
}

// beginsWithCertificate reports whether the first certificate of a PEM text can
// be read.
func beginsWithCertificate(text string) bool {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return false
		}
		if block.Type == "CERTIFICATE" {
			_, err := x509.ParseCertificate(block.Bytes)
			return err == nil
		}
	}
}
