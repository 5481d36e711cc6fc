package supervisor

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// When all slots have been used they are used again, but for those of generations
// that live on.
func TestSlotsComeRound(t *testing.T) {
	n := serve(t, conf(t, "stubborn", func(c *config.Config) { c.Release.DrainTimeout = time.Hour }))
	immortal, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer immortal.Close()
	if got, err := ask(immortal, "/"); got != "1" {
		t.Fatalf("%q, %v", got, err)
	}
	defer syscall.Kill(n.generation(1).PID, syscall.SIGKILL) // it does not end by itself
	first := n.generation(1).Slot
	n.s.mu.Lock()
	n.s.nextSlot = reuseport.Slots - 2 // as if 253 releases had been in between
	n.s.mu.Unlock()
	for _, want := range []int{reuseport.Slots - 2, reuseport.Slots - 1, first + 1, first + 2} {
		res := n.release(n.like("serve"), Request{NoVerify: true})
		if g := n.generation(res.Generation); res.Outcome != Passed || g == nil || g.Slot != want {
			t.Fatalf("%+v: %+v instead of slot %d", res, g, want)
		}
		if got, err := ask(immortal, "/"); got != "1" {
			t.Fatalf("the first generation's connection is answered by %q, %v", got, err)
		}
		if got, err := n.get("/"); got != fmt.Sprint(res.Generation) {
			t.Fatalf("a new connection is answered by %q, %v", got, err)
		}
	}
}
