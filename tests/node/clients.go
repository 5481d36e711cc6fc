package node

import (
	"context"
	"sync"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// Clients are a load that runs on a node.
type Clients struct {
	*demo.Load
	t       testing.TB
	stop    context.CancelFunc
	running sync.WaitGroup
}

// Under lets the usual load run on a node, as set has changed it; nil: not at all. It
// returns when the load has got going. Who does not end it has it ended with the test.
func Under(t testing.TB, n *demo.Node, set func(*demo.Load)) *Clients {
	t.Helper()
	load := Load(t, n)
	if set != nil {
		set(load)
	}
	return Run(t, load)
}

// Run is Under for a load on whatever serves.
func Run(t testing.TB, load *demo.Load) *Clients {
	t.Helper()
	c := &Clients{Load: load, t: t}
	ctx, stop := context.WithCancel(t.Context())
	c.stop = stop
	c.running.Go(func() { c.Run(ctx) })
	t.Cleanup(c.leave)
	Eventually(t, "the load to get going", func() bool { return c.Counts().OK > 200 })
	return c
}

func (c *Clients) leave() {
	c.stop()
	c.running.Wait()
}

// End ends the load. An operation that failed fails the test; it returns how many did not.
func (c *Clients) End() (ok int) {
	c.t.Helper()
	c.leave()
	for _, op := range c.Ops() {
		if op.Err != nil {
			c.t.Errorf("%s from %s: %v", op.Kind, op.Flow.Client, op.Err)
		} else {
			ok++
		}
	}
	return ok
}
