package listener

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
)

// Secure is the server's side of TLS on one listener.
type Secure struct {
	config *tls.Config
	shared *keys.Reader // nil: the keys of tickets are ours alone

	mu       sync.Mutex
	sequence uint64 // of the shared keys in use; 0 before the first
}

// NewSecure prepares TLS with the certificate of cfg, for these application
// protocols (ALPN). With shared keys a session begun with another generation is
// resumed here.
func NewSecure(cfg config.TLS, shared *keys.Reader, protocols ...string) (*Secure, error) {
	pair, err := cfg.KeyPair()
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	s := &Secure{shared: shared, config: &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   protocols,
	}}
	return s, s.refresh()
}

// Config is what the next handshake is made with: always the same one, whose
// ticket keys are those in force. Not to be changed.
func (s *Secure) Config() *tls.Config {
	// A page that cannot be read leaves us with the keys we have.
	s.refresh()
	return s.config
}

// server is the server's side on tcp. The handshake comes with the first read.
func (s *Secure) server(tcp *net.TCPConn) *tls.Conn { return tls.Server(tcp, s.Config()) }

// refresh takes over the shared keys if they have changed.
func (s *Secure) refresh() error {
	if s.shared == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared.Sequence() == s.sequence {
		return nil
	}
	tickets, sequence, err := s.shared.Tickets()
	if err != nil || len(tickets) == 0 {
		return err
	}
	secrets := make([][32]byte, len(tickets))
	for i, t := range tickets {
		secrets[i] = t.Key
	}
	s.config.SetSessionTicketKeys(secrets)
	s.sequence = sequence
	return nil
}
