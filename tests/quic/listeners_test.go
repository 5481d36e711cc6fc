package quic

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/node"
)

// echoes sends a datagram on a flow and waits for it to come back.
func echoes(c net.Conn, word string) error {
	if _, err := c.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(patience))
	n, err := c.Read(got)
	if err == nil && string(got[:n]) != word {
		err = fmt.Errorf("sent %q, got %q", word, got[:n])
	}
	return err
}

func askUDP(address string) error {
	c, err := net.Dial("udp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	return echoes(c, "hello")
}

// refused waits for new flows to be refused: they are from the end of the release on.
func refused(t *testing.T, address string) {
	t.Helper()
	if err := askUDP(address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new flow to %s: %v, want it refused", address, err)
	}
}

// TestListenersOfDatagrams: releases add, move and take out listeners of UDP and
// HTTP/3, one of them by a supervisor that has just adopted what serves. Flows of
// the listeners that stay notice nothing, a flow of the one that goes ends by itself.
func TestListenersOfDatagrams(t *testing.T) {
	s := startSite(t, siteSettings{})
	l := s.load(t)
	l.fresh()
	l.kept()
	l.datagrams()
	there, other := s.HTTP.String(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 2}), s.HTTP.Port()).String()
	with := func(name, address string) string {
		return s.write(t, name, "routes:\n", fmt.Sprintf("  - {name: more, address: %q, protocol: udp, idle_timeout: 5s}\nroutes:\n", address),
			"listeners: [dgram]", "listeners: [dgram, more]")
	}
	refused(t, there)
	s.releaseTo(t, with("more", there), "one more")
	if err := askUDP(there); err != nil {
		t.Errorf("the listener that was added: %v", err)
	}
	l.each("flow of a listener that goes", func() (func() error, func()) {
		c, err := net.Dial("udp", there)
		if err != nil {
			t.Error(err)
		}
		n := 0
		return func() error { n++; return echoes(c, fmt.Sprint(n)) }, func() { c.Close() }
	})
	node.Eventually(t, "the flow has begun", func() bool { return l.count("flow of a listener that goes") > 0 })

	s.releaseTo(t, with("moved", other), "it moves")
	if err := askUDP(other); err != nil {
		t.Errorf("the listener that was moved: %v", err)
	}
	refused(t, there)

	s.Kill()
	if err := s.Restart(t.Context()); err != nil { // with a file that has none of it
		t.Fatal(err)
	}
	if err := askUDP(other); err != nil {
		t.Errorf("after the adoption: %v", err)
	}
	refused(t, there)
	s.release(t, "it is taken out")
	refused(t, other)
	refused(t, there)

	done, failed := l.finish()
	t.Logf("%v operations, %d failed", done, len(failed))
	for _, f := range failed {
		t.Error(f)
	}

	// HTTP/3 is taken out and comes back. What shares its address is not confused with it.
	s.releaseTo(t, s.write(t, "tcp", "http3: true, ", ""), "no HTTP/3")
	refused(t, s.HTTPS.String())
	s.release(t, "HTTP/3 again")
	if err := l.one(); err != nil {
		t.Errorf("HTTP/3, when it is back: %v", err)
	}
	udp := s.write(t, "udp", "protocol: https, http3: true, workers: 2, tls: {cert_file: cert.pem, key_file: key.pem}", "protocol: udp",
		"  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}\n", "", "[dgram]", "[dgram, web]")
	if result, err := s.Release(t.Context(), udp); err != nil || result.Outcome != "refused" || !strings.Contains(result.Reason, "by one release") {
		t.Errorf("UDP in the place of HTTP/3: %+v, %v", result, err)
	}
}
