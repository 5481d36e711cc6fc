package quic

import (
	"cmp"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

const (
	rateConnections = 4
	rateStreams     = 8 // on each
	rateWindow      = 2 * time.Second
)

// TestRates measures how many requests of HTTP/3 are answered with the kernel's
// steering, without it, and by Caddy, in turn. BATON_RATES is in how many rounds,
// BATON_CADDY is Caddy's executable, or 1 to have it built.
func TestRates(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("BATON_RATES"))
	if rounds == 0 {
		t.Skip("measures: make quic")
	}
	origin, err := demo.StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	at := origin.HTTPAddress()
	steered, plain := startSite(t, siteSettings{origin: at}), startSite(t, siteSettings{unsteered: true, origin: at})
	type server struct {
		name, address, host string
		rates               []float64
	}
	all := []*server{{name: "steered", address: steered.HTTPS.String()}, {name: "not steered", address: plain.HTTPS.String()}}
	if program := os.Getenv("BATON_CADDY"); program != "" {
		address := startCaddy(t, plain, at, program)
		all = append(all, &server{name: "Caddy", address: address, host: strings.Replace(address, "127.0.0.1", "demo.test", 1)})
	}
	certificates := map[*server]*site{all[0]: steered, all[1]: plain}
	for round := range rounds {
		for i := range all {
			s := all[(i+round)%len(all)]
			l := cmp.Or(certificates[s], plain).load(t)
			l.url = "https://" + s.address
			s.rates = append(s.rates, l.rate(s.host, rateWindow))
		}
	}
	for _, s := range all {
		t.Logf("%-12s %6.0f requests a second in the median of %d rounds, %.0f to %.0f", s.name, median(s.rates), rounds, slices.Min(s.rates), slices.Max(s.rates))
	}
	for _, s := range all[1:] {
		var of []float64
		for i, r := range s.rates {
			of = append(of, all[0].rates[i]/r)
		}
		t.Logf("steered / %-12s %.3f in the median, %.3f to %.3f", s.name, median(of), slices.Min(of), slices.Max(of))
	}
}

func median(of []float64) float64 { return slices.Sorted(slices.Values(of))[len(of)/2] }

// rate keeps streams busy on a few connections and returns how many requests a second
// were answered. One that is not fails the test.
func (l *load) rate(host string, during time.Duration) float64 {
	l.t.Helper()
	var answered atomic.Int64
	var streams sync.WaitGroup
	measure := make(chan struct{})
	stop := make(chan struct{})
	for range rateConnections {
		c := l.client(l.secure)
		defer c.end()
		for range rateStreams {
			streams.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					req, _ := http.NewRequest(http.MethodGet, l.url+"/small?seed=1", nil)
					req.Host = host
					res, err := c.http.RoundTrip(req)
					if err != nil {
						l.t.Error(err)
						return
					}
					n, err := io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if err != nil || res.StatusCode != http.StatusOK || n != 512 {
						l.t.Errorf("status %d, %d octets, %v", res.StatusCode, n, err)
						return
					}
					select {
					case <-measure:
						answered.Add(1)
					default:
					}
				}
			})
		}
	}
	time.Sleep(during / 4) // handshakes, and what is slow at first
	begin := time.Now()
	close(measure)
	time.Sleep(during)
	n, took := answered.Load(), time.Since(begin)
	close(stop)
	streams.Wait()
	return float64(n) / took.Seconds()
}
