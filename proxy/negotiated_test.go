package proxy_test

import (
	"crypto/tls"
	"io"
	"testing"
)

// Over TLS a connection speaks the version of HTTP that ALPN has settled
// (RFC 9113, 3.2), where it has.
func TestOnlyWhatWasNegotiatedIsSpoken(t *testing.T) {
	n := start(t, origin(t, hello), "", https)
	const http1, http2 = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	for _, test := range []struct {
		offered []string
		spoken  string
		served  bool
	}{
		{nil, http1, true},
		{nil, http2, true},
		{[]string{"http/1.1"}, http1, true},
		{[]string{"http/1.1"}, http2, false},
		{[]string{"h2"}, http1, false},
		{[]string{"h2"}, http2, true},
	} {
		config := clientTLS()
		config.ServerName, config.NextProtos = "a.example", test.offered
		conn := tls.Client(dial(t, n.web), config)
		io.WriteString(conn, test.spoken)
		first, begins := []byte{255}, map[string]byte{http1: 'H', http2: 0}
		if _, err := conn.Read(first); (first[0] == begins[test.spoken]) != test.served {
			t.Errorf("%q after %v: %q, %v", test.spoken, test.offered, first, err)
		}
	}
}
