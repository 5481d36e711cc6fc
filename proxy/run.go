package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

// statusEvery is how often a draining generation says what is left.
const statusEvery = time.Second

// settleTime bounds the wait for requests whose connections have closed to be
// accounted for: they have nothing left to wait for themselves.
const settleTime = time.Second

// Run serves until ctx ends, then drains, and returns when the last connection
// has closed. Closing lastCall, or the drain timeout, ends the wait: what is
// left is then closed and counted. A generation runs once.
func (g *Generation) Run(ctx context.Context, lastCall <-chan struct{}) listener.Tally {
	for _, s := range g.servers {
		s.Start()
	}
	beating := make(chan struct{})
	defer close(beating)
	go g.beat(beating)
	for _, s := range g.datagrams {
		s.Start()
	}
	g.notify(ctx, "READY=1", "STATUS=serving")
	g.opts.Log.Info("ready", "generation", g.opts.Generation)

	<-ctx.Done()
	says := g.newTeller()
	tally := g.drain(says, lastCall)
	g.opts.Ledger.Settle(settleTime)

	for _, u := range g.upstreams {
		u.Close()
	}
	g.opts.Log.Info("drained", "generation", g.opts.Generation, "cut", tally.Cut, "idle_closed", tally.IdleClosed)
	says.end("STOPPING=1", "STATUS=drained",
		fmt.Sprintf("%s=%d", contract.NotifyCut, tally.Cut),
		fmt.Sprintf("%s=%d", contract.NotifyIdleClosed, tally.IdleClosed))
	return tally
}

// drain finishes what there is.
//
// Responses of HTTP/1 that begin from now on end their connection, and clients
// of HTTP/2 are asked to end theirs. Nothing is closed under a client before the
// last call.
func (g *Generation) drain(says *teller, lastCall <-chan struct{}) listener.Tally {
	g.draining.Store(true)
	all := g.flows()
	for _, f := range all {
		f.Drain(g.window())
	}
	says.where(g.Counts())
	empty := make(chan struct{})
	go func() {
		for _, f := range all {
			<-f.Empty()
		}
		close(empty)
	}()

	deadline := time.NewTimer(g.cfg.Release.DrainTimeout)
	defer deadline.Stop()
	status := time.NewTicker(statusEvery)
	defer status.Stop()

	// Accepting what is queued may itself wait, for descriptors, and must not
	// hold up the deadline.
	go func() {
		var stopping sync.WaitGroup
		for _, s := range g.servers {
			stopping.Go(s.StopAccepting)
		}
		stopping.Wait()
		g.registry.Seal()
	}()

	for {
		select {
		case <-empty:
			g.lastCall() // frees the sockets that stay open to the end
			return g.tally()
		case <-status.C:
			says.where(g.Counts())
			continue
		case <-lastCall:
		case <-deadline.C:
		}
		left := g.Counts()
		g.opts.Log.Warn("last call", "generation", g.opts.Generation, "left", left.String())
		says.word("STOPPING=1", "STATUS=last call: "+left.String())
		g.lastCall()
		return g.tally()
	}
}

// beat says in the ledger that the generation runs, until done is closed.
func (g *Generation) beat(done <-chan struct{}) {
	tick := time.NewTicker(ledger.BeatEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.opts.Ledger.Beat()
		case <-done:
			return
		}
	}
}

// lastCall ends what is left of every kind.
func (g *Generation) lastCall() {
	var ending sync.WaitGroup
	for _, f := range g.flows() {
		ending.Go(func() { f.LastCall(g.window()) })
	}
	ending.Wait()
}

func (g *Generation) tally() (sum listener.Tally) {
	for _, f := range g.flows() {
		t := f.Tally()
		sum.Cut += t.Cut
		sum.IdleClosed += t.IdleClosed
	}
	return sum
}

// notify tells the supervisor. One that does not listen costs us nothing: what
// we owe is to the clients.
func (g *Generation) notify(ctx context.Context, state ...string) {
	if err := g.opts.Notify(ctx, state...); err != nil {
		g.opts.Log.Warn("notify", "error", err)
	}
}
