package supervisor

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// How a generation ended is written into the release that replaced it, with the flows
// that it left open and said nothing of; the next supervisor knows it as well.
func TestEndingsAreWrittenDown(t *testing.T) {
	c := conf(t, "stubborn")
	n := serve(t, c)
	open, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	fmt.Fprint(open, "GET /for-ever HTTP/1.1\r\nHost: test\r\n\r\n")
	eventually(t, "the kernel has counted the flow", func() bool {
		g := n.generation(1)
		return g != nil && g.OpenFlows == 1
	})
	res := n.release(n.like("serve", func(c *config.Config) { c.Release.DrainTimeout = 200 * time.Millisecond }), Request{})
	if res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	ended := func() []Ending {
		all := n.s.Results()
		i := slices.IndexFunc(all, func(r Result) bool { return r.ID == res.ID })
		return all[i].Ended
	}
	eventually(t, "generation 1 has ended", func() bool { return len(ended()) > 0 })
	want := Ending{Generation: 1, Exit: "killed by SIGKILL", Undeclared: 1}
	if got := ended(); len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	eventually(t, "the reap has its span", func() bool { return named(n.spansOf(res.ID), "reap") != nil })
	if reap := named(n.spansOf(res.ID), "reap"); trace.Int(reap.Attributes, string(trace.ExitUndeclared)) != 1 {
		t.Errorf("%v", reap)
	}

	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = serve(t, n.like("serve"))
	if got := ended(); len(got) != 1 || got[0] != want {
		t.Errorf("the next supervisor: %+v, want %+v", got, want)
	}
}

// A candidate that is taken back before it had flows is in its release's result.
func TestEndingOfACandidate(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	res := n.release(n.like("die-when-ready"), Request{})
	if res.Outcome != Refused || len(res.Ended) != 1 || res.Ended[0].Generation != res.Generation || res.Ended[0].Exit != "exit status 5" {
		t.Errorf("%s because of %s; generations ended: %+v", res.Outcome, res.Reason, res.Ended)
	}
}
