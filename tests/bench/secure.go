package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// Secure is what Baton's proxy carries over TLS, steady and in a release, on a node
// of its own. There is no CPU figure: the client of HTTP/2 is
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
	http1 := subject{clients: wrk(url), answered: node.Answered, replace: func(ctx context.Context) error {
		if r, err := node.ReleaseUnwatched(ctx, file); err != nil || r.Outcome != "passed" {
			return fmt.Errorf("release over TLS: %+v, %w", r, err)
		}
		return nil
	}}
	http2 := http1
	http2.clients = func(ctx context.Context) (int, error) { return http2Clients(ctx, url), nil }
	for round := range p.rounds {
		progress("baton over TLS: throughput, round %d of %d", round+1, p.rounds)
		if err := errors.Join(s.HTTP1.run(ctx, http1, p.ours), s.HTTP2.run(ctx, http2, p.ours)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// http2Clients keeps streams busy on a few connections. Each connection is left
// and made anew as net/http does at GOAWAY; h2load would not come back.
func http2Clients(ctx context.Context, url string) (errors int) {
	var failed atomic.Int64
	var clients sync.WaitGroup
	for range h2Connections {
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		transport := &http.Transport{
			Protocols: protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: time.Minute}
		for range h2Streams {
			clients.Go(func() {
				for ctx.Err() == nil {
					if err := fetch(client, url); err != nil {
						failed.Add(1)
					}
				}
			})
		}
	}
	clients.Wait()
	return int(failed.Load())
}

func fetch(client *http.Client, url string) error {
	resp, err := client.Get(url)
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
	table(out, "baton over TLS\trequests/s\tshare, %\tafter, %\tcontrol, %\terrors\t", func(t io.Writer) {
		for _, row := range []struct {
			name string
			of   Throughput
		}{{"HTTP/1.1, wrk", s.HTTP1}, {"HTTP/2, net/http", s.HTTP2}} {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t\n", row.name, row.of.Steady.text(0), row.of.Share.estimateText(1), row.of.After.estimateText(1), row.of.Control.estimateText(1), row.of.Errors)
		}
	})
}
