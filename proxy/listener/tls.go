package listener

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
)

// secure makes TLS of the TCP connections of one listener.
type secure struct {
	config *tls.Config
	shared *keys.Reader // nil: the keys of tickets are ours alone

	mu       sync.Mutex
	sequence uint64 // of the shared keys in use; 0 before the first
}

// newSecure prepares TLS with the certificate of cfg.
func newSecure(cfg config.TLS, shared *keys.Reader) (*secure, error) {
	pair, err := cfg.KeyPair()
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	s := &secure{shared: shared, config: &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2", "http/1.1"},
	}}
	return s, s.refresh()
}

// server is the server's side on tcp. The handshake comes with the first read.
func (s *secure) server(tcp *net.TCPConn) *tls.Conn {
	// A page that cannot be read leaves us with the keys we have.
	s.refresh()
	return tls.Server(tcp, s.config)
}

// refresh takes over the shared keys if they have changed.
func (s *secure) refresh() error {
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
