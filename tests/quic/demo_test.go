package quic

import (
	"context"
	"sync"
	"testing"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestDemoClients has the clients of `make demo` that send datagrams see nothing
// of releases, and what they sent counted.
//
// It fails with -race, and so does TestFlips: quic-go v0.65.0 reads the peer's transport
// parameters when a stream is opened with early data (Conn.newFlowController) while
// its own goroutine writes them (Conn.handleTransportParameters). Only clients resume.
func TestDemoClients(t *testing.T) {
	settings := demo.Settings{Datagrams: true}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("next", settings)
	if err != nil {
		t.Fatal(err)
	}
	load := node.Load(t, n)
	load.Kinds = demo.DatagramKinds
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var running sync.WaitGroup
	running.Go(func() { load.Run(ctx) })
	const releases = 2
	for i := range releases + 1 {
		if i > 0 {
			if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
				t.Fatalf("%+v, %v", res, err)
			}
		}
		before := load.Counts().OK
		node.Eventually(t, "the generation has connections", func() bool {
			status, err := n.Status(t.Context())
			return err == nil && status.Datagrams().Slots == i+1 && load.Counts().OK > before+20
		})
	}
	stop()
	running.Wait()
	for _, k := range demo.Summarize(load.Ops(), nil, nil, nil) {
		t.Logf("%-8s %d ok, %d failed", k.Kind, k.OK, k.Failed)
		if k.OK == 0 {
			t.Errorf("%s: nothing was done", k.Kind)
		}
	}
	for _, op := range load.Ops() {
		if op.Err != nil {
			t.Errorf("%s: %v", op.Kind, op.Err)
		}
	}
	status, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := status.Datagrams()
	t.Logf("%+v", *d)
	if d.Slots != releases+1 || d.Named == 0 || d.Remembered == 0 || d.Lost > 0 {
		t.Errorf("%+v", *d)
	}
}
