package supervisor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// probeHTTP3 asks the candidate by HTTP/3 at the public address, from a port that
// the program sends to it alone. What comes behind its first packets is steered by
// the connection IDs that it has given, so the answer proves them too.
func (s *Supervisor) probeHTTP3(ctx context.Context, by steer.Prober, g *generation, l config.Listener) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	ctx, end := s.probeSpan(ctx, l.Name+contract.UDPSuffix)
	defer func() { end(err) }()
	to := probeAddress(l)
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr().Unmap(), 0)))
	if err != nil {
		return err
	}
	defer conn.Close()
	from := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if err := by.Steer(from, g.slot); err != nil {
		return err
	}
	defer by.Unsteer(from)
	before, err := by.Counts(int(g.slot))
	if err != nil {
		return err
	}

	transport := &quic.Transport{Conn: conn}
	defer transport.Close()
	client := &http3.Transport{
		// Whether clients trust the certificate is not the candidate's doing.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Dial: func(ctx context.Context, _ string, secure *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			return transport.Dial(ctx, net.UDPAddrFromAddrPort(to), secure, conf)
		},
	}
	defer client.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+to.String()+"/", nil)
	if err != nil {
		return err
	}
	prepareProbe(ctx, req)
	resp, err := client.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := wholeBody(resp); err != nil {
		return err
	}
	after, err := by.Counts(int(g.slot))
	switch {
	case err != nil:
		return err
	case after[reuseport.Probe] == before[reuseport.Probe]:
		return errors.New("the probe did not reach the candidate")
	case after[reuseport.Named] == before[reuseport.Named]:
		return fmt.Errorf("generation %d gives out connection IDs that do not name it", g.id)
	}
	return g.claims(resp.Header)
}
