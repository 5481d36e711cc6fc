package supervisor

import (
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// A candidate that stops accepting is found as soon as its queue has run over. Who
// waits in that queue goes over to the previous generation, who found no room tries
// again there, and both are counted.
func TestQueueThatRunsOver(t *testing.T) {
	const backlog, late = 2, 3
	n := serve(t, conf(t, "serve"))
	n.s.patience.Store(int64(time.Hour)) // a probe without an answer would tell, too
	r := n.inVerify(n.like("serve", func(c *config.Config) {
		c.Listeners[0].Backlog = backlog
		c.Release.Verify.Window, c.Release.DrainTimeout = time.Minute, time.Second
	}))
	freeze(t, r.candidate)
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, backlog+1+late)
	connect := func(clients int) {
		for range clients {
			go func() {
				text, err := patientGet(n.addr)
				answers <- answer{text, err}
			}()
		}
	}
	connect(backlog + 1)
	eventually(t, "its queue is full", func() bool {
		q, err := n.s.queueLengths(r.candidate.sockets)
		return err == nil && q.ToAccept == backlog+1
	})
	connect(late)
	res := n.ended(r)
	if res.Outcome != RolledBack || !strings.Contains(res.Reason, "queues: the accept queue of listener ") {
		t.Fatalf("%+v", res)
	}
	t.Logf("%.0f ms after the shift: %s", res.Verdict.Milliseconds, res.Reason)
	for range cap(answers) {
		if a := <-answers; a.err != nil || a.text != "1" {
			t.Errorf("a client was answered %q, %v", a.text, a.err)
		}
	}
	eventually(t, "the candidate is gone", func() bool { return len(n.s.Status().Generations) == 1 })
	st := n.s.Status()
	if l := st.Listeners[0]; l.Dropped < late {
		t.Errorf("%d segments were dropped at %s, want %d or more", l.Dropped, l.Name, late)
	}
	moved := reuseport.Moved{ToAccept: backlog + 1}
	if q := st.Generations[0].Queues; len(q) != 1 || q["web"].Moved != moved || q["web"].Dropped != 0 {
		t.Errorf("queues of the previous generation: %+v, want moved %+v", q, moved)
	}
	if st.Namespace["listen_overflows"] < late || st.Namespace["migrations"] < backlog+1 {
		t.Errorf("the namespace: %v", st.Namespace)
	}
}
