package proxy

import (
	"net/http/httputil"
	"net/netip"
	"strings"

	"github.com/baton-mesh/baton/proxy/config"
)

// rewrite turns the client's request into the upstream's. Connection-level
// fields have been removed already, and Forwarded, which we do not speak.
func (h *handler) rewrite(r *httputil.ProxyRequest) {
	out, in := r.Out.Header, r.In.Header
	r.Out.URL.Scheme = "http"
	r.Out.Host = r.In.Host
	// ReverseProxy drops parameters that it cannot read. We read none.
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	// The map that the server fills at the end of the body; Out has a copy from before.
	r.Out.Trailer = r.In.Trailer

	// What an upgrade to HTTP/2 carries would not pass through us, and a route
	// could be left behind with it.
	if offersH2C(in["Upgrade"]) {
		out.Del("Upgrade")
		out.Del("Connection")
	}
	out.Del("Http2-Settings")
	dropAlmostOurs(out)
	if r.In.ProtoMajor == 1 && r.In.ProtoMinor == 0 {
		// Of HTTP/1.1, and to be ignored (RFC 9110, 7.8 and 10.1.1).
		out.Del("Upgrade")
		out.Del("Connection")
		out.Del("Expect")
	}

	if ex := exchangeOf(r.In.Context()); ex.traceparent != "" {
		out["Traceparent"] = []string{ex.traceparent}
	}

	peer, err := netip.ParseAddrPort(r.In.RemoteAddr)
	address := peer.Addr().Unmap()
	if err != nil {
		return
	}
	proto, host, chain := "http", r.In.Host, address.String()
	if h.cfg.Protocol == config.HTTPS { // the server below does not know of it
		proto = "https"
	}
	if h.trusts(address) {
		if before := in["X-Forwarded-For"]; len(before) > 0 {
			chain = strings.Join(before, ", ") + ", " + chain
		}
		if before := in.Get("X-Forwarded-Proto"); before != "" {
			proto = before
		}
		if before := in.Get("X-Forwarded-Host"); before != "" {
			host = before
		}
	}
	out["X-Forwarded-For"] = []string{chain}
	out["X-Forwarded-Proto"] = []string{proto}
	out["X-Forwarded-Host"] = []string{host}
}

// offersH2C looks for h2c among the protocols of Upgrade fields.
func offersH2C(fields []string) bool {
	for _, field := range fields {
		for protocol := range strings.SplitSeq(field, ",") {
			if name, _, _ := strings.Cut(strings.TrimSpace(protocol), "/"); strings.EqualFold(name, "h2c") {
				return true
			}
		}
	}
	return false
}

// trusts says whether the peer's X-Forwarded-* fields are believed.
func (h *handler) trusts(peer netip.Addr) bool {
	for _, prefix := range h.cfg.TrustedProxies {
		if prefix.Contains(peer) {
			return true
		}
	}
	return false
}
