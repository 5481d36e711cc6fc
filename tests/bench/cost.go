package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"time"
)

// Cost is the CPU time that a replacement takes of the machine while clients are
// served: that of the peer and of who asks it, of the clients, who connect again, and of
// the origin. The clients ask at a steady rate, so what a window with a replacement
// takes beyond those beside it is the replacement's; unlike a dip of throughput this
// can be told to a few ms.
type Cost struct {
	Replacement Figure `json:"cpu_ms"`
	// Control is the same of a window in which nothing happens.
	Control Figure `json:"control_cpu_ms"`
	Errors  int    `json:"errors"`
}

const (
	lightEvery  = 16 * time.Millisecond  // from one request to the next of a client: 2,000/s for all
	lightWindow = 500 * time.Millisecond // more than any of the peers needs
)

// share is the replacement's part of a second of all CPUs, in percent: the dip of
// throughput where they are saturated, if it costs no more there.
func (c Cost) share() Figure {
	var f Figure
	for _, ms := range c.Replacement.values {
		f.add(ms / 10 / float64(runtime.NumCPU()))
	}
	return f
}

// run measures n replacements, each between two windows in which nothing happens.
func (c *Cost) run(ctx context.Context, url string, g *group, replace func(context.Context) error, n int) error {
	asking, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan int, 1)
	go func() { ended <- lightClients(asking, url) }()
	err := sleep(ctx, warmUp)
	var kinds []second
	var spent []float64
	if err == nil {
		err = inOrder(n, func(kind second) error {
			ms, err := window(ctx, g, kind == replaced, replace)
			kinds, spent = append(kinds, kind), append(spent, ms)
			return err
		})
	}
	stop()
	c.Errors += <-ended
	if err != nil {
		return err
	}
	for i, kind := range kinds {
		switch kind {
		case replaced:
			c.Replacement.add(spent[i] - (spent[i-1]+spent[i+1])/2)
		case control:
			c.Control.add(spent[i] - (spent[i-1]+spent[i+1])/2)
		}
	}
	return nil
}

func window(ctx context.Context, g *group, replaced bool, replace func(context.Context) error) (ms float64, err error) {
	end := time.Now().Add(lightWindow)
	before, err := g.cpu()
	if err != nil {
		return 0, err
	}
	if replaced {
		if err := replace(ctx); err != nil {
			return 0, err
		}
	}
	if err := sleep(ctx, time.Until(end)); err != nil {
		return 0, err
	}
	after, err := g.cpu()
	return milliseconds(after - before), err
}

// lightClients ask at a steady rate on a connection each, until ctx ends.
func lightClients(ctx context.Context, url string) (errors int) {
	failed := make([]int, connections)
	var clients sync.WaitGroup
	for i := range connections {
		clients.Go(func() {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport, Timeout: time.Minute}
			// Not all at once.
			if sleep(ctx, lightEvery*time.Duration(i)/connections) != nil {
				return
			}
			tick := time.NewTicker(lightEvery)
			defer tick.Stop()
			for ctx.Err() == nil {
				if err := fetch(client, url); err != nil {
					failed[i]++
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	clients.Wait()
	for _, n := range failed {
		errors += n
	}
	return errors
}

func printCosts(out io.Writer, peers []Peer) {
	head := "CPU time of all for a replacement\tat 2,000 requests/s, ms\tcontrol, ms\tof a second of all CPUs, %\terrors\t"
	table(out, head, func(t io.Writer) {
		for _, p := range peers {
			if c := p.Light; c != nil {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t\n", p.Name, c.Replacement.estimateText(0), c.Control.estimateText(0), c.share().estimateText(1), c.Errors)
			}
		}
	})
}
