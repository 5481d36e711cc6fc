package supervisor

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// askEach probes each listener of a generation that serves, once; of thousands a
// sample. A listener whose connections are bounded is left out: at its bound a
// client waits, and that is no fault. So is one of datagrams, which have no answer.
func (s *Supervisor) askEach(ctx context.Context, g *generation) error {
	by := s.steering.Prober()
	if by == nil {
		return nil
	}
	probes, probing := errgroup.WithContext(ctx)
	probes.SetLimit(probesAtOnce)
	asked, _ := sample(g.recipe.config.Listeners)
	for _, conf := range asked {
		if conf.MaxConnections > 0 || !conf.Protocol.HasStreams() {
			continue
		}
		probes.Go(func() error {
			if err := s.ask(probing, by, g, conf); err != nil {
				return fmt.Errorf("listener %s: %w", conf.Name, err)
			}
			return nil
		})
	}
	return probes.Wait()
}

func (s *Supervisor) ask(ctx context.Context, by steer.Prober, g *generation, conf config.Listener) error {
	if conf.HTTP3 {
		if err := s.probeHTTP3(ctx, by, g, conf); err != nil {
			return fmt.Errorf("HTTP/3: %w", err)
		}
	}
	if conf.Protocol.IsHTTP() {
		return s.probeOnce(ctx, by, g, conf)
	}
	// A stream has no answer: that it is accepted is what can be seen. To look takes
	// milliseconds where thousands listen.
	before, _, err := s.taken(g, conf.Name)
	if err != nil {
		return err
	}
	if err := s.probeOnce(ctx, by, g, conf); err != nil {
		return err
	}
	late := time.After(time.Duration(s.patience.Load()))
	for {
		now, waiting, err := s.taken(g, conf.Name)
		if err != nil || waiting == 0 || now > before {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return fmt.Errorf("nothing of %d connections was accepted in time", waiting)
		case <-time.After(queuePoll):
		}
	}
}

// taken is how many flows a generation has accepted on a listener, as far as
// that is counted, and how many wait to be.
func (s *Supervisor) taken(g *generation, listener string) (taken int64, waiting int, err error) {
	q, err := s.queueLengths(steer.Sockets{listener: g.sockets[listener]})
	if err != nil {
		return 0, 0, err
	}
	counts, err := g.flows.On(listener)
	if err != nil {
		return 0, q.ToAccept, nil
	}
	return int64(counts[flows.Established]) - int64(q.ToAccept), q.ToAccept, nil
}
