package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// Adoption is what the death of a supervisor costs: it is killed under wrk, and the next
// one started at once. Other ways of replacing a proxy have none
// whose death their clients would survive, or none at all.
type Adoption struct {
	Name string `json:"name"`
	// InCharge is from the start of the next supervisor until it serves requests and
	// answers operators, in ms.
	InCharge  Figure     `json:"in_charge_ms"`
	KeepAlive Throughput `json:"keep_alive"`
}

// adoptions measures each mode on a node that nobody else uses.
func adoptions(ctx context.Context, p plan, t tools) (all []Adoption, err error) {
	for _, of := range []struct{ name, steering string }{{"baton", "bpf"}, {"baton-takeover", "takeover"}} {
		a := Adoption{Name: of.name}
		if err := a.measure(ctx, p, t, of.steering); err != nil {
			return nil, fmt.Errorf("%s, supervisor killed: %w", of.name, err)
		}
		all = append(all, a)
	}
	return all, nil
}

func (a *Adoption) measure(ctx context.Context, p plan, t tools, steering string) (err error) {
	node, err := demo.StartNode(ctx, t.baton, demo.Place{}, demo.Settings{Steering: steering})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop(), node.Remove()) }()
	url := "http://" + node.HTTP.String() + "/small?seed=1"
	s := subject{clients: wrk(url), answered: node.Answered, replace: func(ctx context.Context) error { return a.kill(ctx, node) }}
	for round := range p.rounds {
		progress("%s: its supervisor killed, round %d of %d", a.Name, round+1, p.rounds)
		if err := a.KeepAlive.run(ctx, s, p.others); err != nil {
			return err
		}
	}
	return nil
}

// kill kills the supervisor and starts another.
func (a *Adoption) kill(ctx context.Context, node *demo.Node) error {
	node.Kill()
	began := time.Now()
	if err := node.Restart(ctx); err != nil {
		return err
	}
	a.InCharge.add(milliseconds(time.Since(began)))
	return nil
}

func printAdoptions(out io.Writer, all []Adoption) {
	table(out, "supervisor killed\tin charge, ms\trequests/s\tshare, %\tafter, %\tcontrol, %\terrors\t", func(t io.Writer) {
		for _, a := range all {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", a.Name, a.InCharge.text(0), a.KeepAlive.Steady.text(0), a.KeepAlive.Share.estimateText(1), a.KeepAlive.After.estimateText(1), a.KeepAlive.Control.estimateText(1), a.KeepAlive.Errors)
		}
	})
}
