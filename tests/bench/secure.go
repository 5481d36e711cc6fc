package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// Secure is what Baton's proxy carries over TLS, steady and with a release every
// second, on a node of its own. There is no CPU figure: the client of HTTP/2 is
// this process.
type Secure struct {
	HTTP1 Throughput `json:"http1"`
	HTTP2 Throughput `json:"http2"`
}

const (
	h2Connections = 4
	h2Streams     = 8 // on each connection
)

// secure measures on a node that nobody else uses.
func secure(ctx context.Context, p plan, t tools) (s Secure, err error) {
	node, err := demo.StartNode(ctx, t.baton, demo.Place{}, demo.Settings{})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, node.Stop(), node.Remove()) }()
	file, err := node.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		return s, err
	}
	url := "https://" + node.HTTPS.String() + "/small?seed=1"
	during := func(replacing bool, run func(end time.Time) (window, error)) (window, error) {
		end := time.Now().Add(time.Duration(p.keepAlive) * time.Second)
		released := make(chan error, 1)
		go func() {
			if !replacing {
				released <- nil
				return
			}
			released <- releaseUntil(ctx, node, file, end)
		}()
		w, err := run(end)
		return w, errors.Join(err, <-released)
	}
	for round := range p.rounds {
		progress("baton over TLS: throughput, round %d of %d", round+1, p.rounds)
		err := s.HTTP1.pair(round, func(replacing bool) (window, error) {
			return during(replacing, func(time.Time) (window, error) { return wrkAt(ctx, url, p.keepAlive) })
		})
		if err == nil {
			err = s.HTTP2.pair(round, func(replacing bool) (window, error) {
				return during(replacing, func(end time.Time) (window, error) { return http2Clients(ctx, url, end), nil })
			})
		}
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

// releaseUntil releases every second, first after half of one.
func releaseUntil(ctx context.Context, node *demo.Node, file string, end time.Time) error {
	for next := time.Now().Add(every / 2); next.Before(end); next = next.Add(every) {
		if err := sleep(ctx, time.Until(next)); err != nil {
			return err
		}
		if r, err := node.ReleaseUnwatched(ctx, file); err != nil || r.Outcome != "passed" {
			return fmt.Errorf("release over TLS: %+v, %w", r, err)
		}
	}
	return nil
}

func wrkAt(ctx context.Context, url string, seconds int) (window, error) {
	out, err := exec.CommandContext(ctx, "wrk", "-t1", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%ds", seconds), url).CombinedOutput()
	if err != nil {
		return window{}, fmt.Errorf("wrk on %s: %w\n%s", url, err, out)
	}
	requests, took, failed, err := parseWrk(out)
	if err != nil {
		return window{}, err
	}
	return window{perSecond: float64(requests) / took.Seconds(), errors: failed}, nil
}

// http2Clients keeps streams busy on a few connections. Each connection is left
// and made anew as net/http does at GOAWAY; h2load would not come back.
func http2Clients(ctx context.Context, url string, end time.Time) window {
	var answered, failed atomic.Int64
	var clients sync.WaitGroup
	began := time.Now()
	for range h2Connections {
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		transport := &http.Transport{
			Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport}
		for range h2Streams {
			clients.Go(func() {
				for time.Now().Before(end) && ctx.Err() == nil {
					if err := fetch(ctx, client, url); err != nil {
						failed.Add(1)
					} else {
						answered.Add(1)
					}
				}
			})
		}
	}
	clients.Wait()
	return window{perSecond: float64(answered.Load()) / time.Since(began).Seconds(), errors: int(failed.Load())}
}

func fetch(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (s Secure) print(out io.Writer) {
	table(out, "baton over TLS\trequests/s\treleasing\tshare, %\terrors\t", func(t io.Writer) {
		for _, row := range []struct {
			name string
			of   Throughput
		}{{"HTTP/1.1, wrk", s.HTTP1}, {"HTTP/2, net/http", s.HTTP2}} {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t\n", row.name, row.of.Steady.text(0), row.of.During.text(0), row.of.Share.text(1), row.of.Errors)
		}
	})
}
