package judge

import (
	"fmt"

	"github.com/baton-mesh/baton/supervisor/account"
)

// queued: a candidate whose queues run over keeps clients waiting for a second and
// more. The kernel counts what a listening socket let fall, whatever it was, and for
// the namespace what found a queue full. So it takes three to prove it: one of its
// sockets is full, it has let something fall, and a queue has run over meanwhile.
func (c *Case) queuesHeld() Finding {
	if c.own(c.first()).Queues == nil {
		return unjudged("its queues are not its own")
	}
	now, then := c.own(c.now()).Queues, c.own(c.first()).Queues
	var dropped, handshakes, connections uint64
	for name, q := range now {
		dropped += less(q.Dropped, then[name].Dropped)
		handshakes += less(q.Moved.HalfOpen, then[name].Moved.HalfOpen)
		connections += less(q.Moved.ToAccept, then[name].Moved.ToAccept)
	}
	ran := less(account.Overflows(c.now().Namespace), account.Overflows(c.first().Namespace))
	words := fmt.Sprintf("%d segments were dropped at its listeners, and a queue of this network namespace ran over %d times; %d handshakes and %d connections were moved to it", dropped, ran, handshakes, connections)
	name, most := c.ranOver()
	if most == 0 {
		return held("%s", words)
	}
	for of, q := range c.before(c.now()).Queues {
		if q.Dropped > 0 {
			return unjudged("%s; those of generation %d dropped %d at listener %s, so it may be the clients", words, c.previous.ID, q.Dropped, of)
		}
	}
	return violated("the accept queue of listener %s was full, with %d waiting, and dropped %d segments; generation %d never dropped one", name, now[name].ToAccept, most, c.previous.ID)
}

// ranOver is the candidate's listener that dropped most while its queue was full and
// queues ran over.
func (c *Case) ranOver() (name string, most uint64) {
	for i := 1; i < len(c.readings); i++ {
		before, now := &c.readings[i-1], &c.readings[i]
		if account.Overflows(now.Namespace) <= account.Overflows(before.Namespace) {
			continue
		}
		for of, q := range c.own(now).Queues {
			last := c.own(before).Queues[of]
			if n := less(q.Dropped, last.Dropped); n > most && q.Full {
				name, most = of, n
			}
		}
	}
	return name, most
}
