package release

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

// distance is the round trip time between the clients and the node. A handshake
// is half open for as long, so there are always some that a shift interrupts; on
// loopback it is microseconds, and there are none.
const distance = 20 * time.Millisecond

// afar is a node with its clients at a distance. Connections begin at a steady
// pace, whatever became of those before, so that at each instant some are half
// open.
func afar(t *testing.T) site {
	client, host := testnet.Distant(t, distance, "client", "node")
	return site{
		node: node.On(host),
		dial: func(ctx context.Context, address string) (c net.Conn, err error) {
			err = client.Do(func() error {
				c, err = new(net.Dialer).DialContext(ctx, "tcp", address)
				return err
			})
			return c, err
		},
		command: client.Command,
		burst: func(over func() bool, connect func(n int)) {
			var begun sync.WaitGroup
			defer begun.Wait()
			for !over() {
				begun.Go(func() { connect(2) })
				time.Sleep(distance / 4)
			}
		},
	}
}

// releaseAfar releases n times in a row under clients at a distance. With and
// without steering it does the same, in the same way.
func releaseAfar(t *testing.T, n int, unsteered bool) *run {
	t.Helper()
	needTools(t)
	run := startRun(t, afar(t), demo.Settings{Unsteered: unsteered})
	defer run.finish()
	for range n {
		run.release(t, false)
	}
	run.finish()
	return run
}

// TestReleasesOverDistance interrupts handshakes by its shifts.
func TestReleasesOverDistance(t *testing.T) {
	n := releases(t, 6)
	run := releaseAfar(t, n, false)
	run.check(t, n)
	// On a busy machine the clients may not have had a CPU in the 20 ms before a shift.
	interrupted := 0
	for _, halfOpen := range run.halfOpen {
		if halfOpen > 0 {
			interrupted++
		}
	}
	t.Logf("%d of %d shifts found handshakes half open", interrupted, n)
	if 2*interrupted < n {
		t.Error("too few shifts interrupted a handshake for this test to prove anything")
	}
}

// TestReleasesWithoutSteeringFail is the control group: the same releases under
// the same clients, with new flows left to the kernel's hash over all
// generations that listen. If nothing failed here either, the tests beside it
// would prove nothing.
func TestReleasesWithoutSteeringFail(t *testing.T) {
	// A few are enough, and each takes three seconds: its old generation gets
	// new flows until it closes, so the supervisor waits in vain for the last.
	const n = 3
	run := releaseAfar(t, n, true)
	if s := run.watch.Latest().Steering; s != "none" {
		t.Errorf("steering is %q", s)
	}
	c := run.load.Counts()
	t.Logf("without steering %d operations failed of %d over %d releases", c.Failed, c.OK+c.Failed+c.Cut, n)
	if c.Failed == 0 {
		t.Error("nothing failed without steering: the other tests cannot tell the difference")
	}
}
