package supervisor

import (
	"fmt"

	"github.com/baton-mesh/baton/supervisor/account"
)

// queued: a candidate whose queues run over keeps clients waiting for a second and
// more. The kernel counts what a listening socket let fall, whatever it was, and for
// the namespace what found a queue full. So it takes three to prove it: one of its
// sockets is full, it has let something fall, and a queue has run over meanwhile.
func (w *watch) queuesHeld() Finding {
	if w.first().sides[w.candidate].queues == nil {
		return unjudged("its queues are not its own")
	}
	now, then := w.now().sides[w.candidate].queues, w.first().sides[w.candidate].queues
	var dropped, handshakes, connections uint64
	for name, q := range now {
		dropped += less(q.Dropped, then[name].Dropped)
		handshakes += less(q.Moved.HalfOpen, then[name].Moved.HalfOpen)
		connections += less(q.Moved.ToAccept, then[name].Moved.ToAccept)
	}
	ran := less(account.Overflows(w.now().namespace), account.Overflows(w.first().namespace))
	words := fmt.Sprintf("%d segments were dropped at its listeners, and a queue of this network namespace ran over %d times; %d handshakes and %d connections were moved to it", dropped, ran, handshakes, connections)
	name, most := w.ranOver()
	if most == 0 {
		return held("%s", words)
	}
	for of, q := range w.now().sides[w.previous].queues {
		if q.Dropped > 0 {
			return unjudged("%s; those of generation %d dropped %d at listener %s, so it may be the clients", words, w.previous.id, q.Dropped, of)
		}
	}
	return violated("the accept queue of listener %s was full, with %d waiting, and dropped %d segments; generation %d never dropped one", name, now[name].ToAccept, most, w.previous.id)
}

// ranOver is the candidate's listener that dropped most while its queue was full and
// queues ran over.
func (w *watch) ranOver() (name string, most uint64) {
	for i := 1; i < len(w.readings); i++ {
		before, now := &w.readings[i-1], &w.readings[i]
		if account.Overflows(now.namespace) <= account.Overflows(before.namespace) {
			continue
		}
		for of, q := range now.sides[w.candidate].queues {
			last := before.sides[w.candidate].queues[of]
			if n := less(q.Dropped, last.Dropped); n > most && q.Full {
				name, most = of, n
			}
		}
	}
	return name, most
}
