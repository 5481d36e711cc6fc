package proxy

import (
	"context"
	"time"

	"github.com/baton-mesh/baton/proxy/listener"
)

// lastWords bounds the wait for a supervisor to take what a generation says at its end.
const lastWords = time.Second

// teller says how a drain goes, beside it. A supervisor that is stopped or stuck does not
// read, and once its queue is full who sends waits: neither what is left for the clients
// to do nor the drain's deadline may wait with him. For one goroutine.
type teller struct {
	words chan []string
	ended chan struct{}
	stop  context.CancelFunc
}

func (g *Generation) newTeller() *teller {
	ctx, stop := context.WithCancel(context.Background())
	t := &teller{words: make(chan []string, 3), ended: make(chan struct{}), stop: stop}
	go func() {
		defer close(t.ended)
		for state := range t.words {
			g.notify(ctx, state...)
		}
	}()
	return t
}

// where says what is left, unless something waits to be said still.
func (t *teller) where(left listener.Counts) {
	if len(t.words) == 0 {
		t.word("STOPPING=1", "STATUS=draining: "+left.String())
	}
}

// word says something. There is room for one, and for the last.
func (t *teller) word(state ...string) { t.words <- state }

// end says the last, and returns when all has been said, or nobody has taken it in time.
func (t *teller) end(state ...string) {
	t.word(state...)
	close(t.words)
	defer time.AfterFunc(lastWords, t.stop).Stop()
	<-t.ended
}
