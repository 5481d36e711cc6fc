package account

import (
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// Who takes spans may need what the holder of the book's lock waits for, so it is
// not held then.
func TestSpansAreHandedOnUnlocked(t *testing.T) {
	c := &config.Config{Listeners: []config.Listener{{Name: "web", Protocol: config.HTTP, Workers: 1}}}
	c.Routes = []config.Route{{Name: "all"}}
	c.Proxy.Baton, c.Node.ServerID = true, 42
	var b *Book
	var spans []RequestSpan
	b, err := Create(c, 7, func(found []RequestSpan) {
		if !b.mu.TryLock() {
			t.Error("the book is locked")
			return
		}
		defer b.mu.Unlock()
		spans = append(spans, found...)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	w, err := ledger.Open(b.FD())
	if err != nil {
		t.Fatal(err)
	}
	flow, now := new(ledger.Flow), time.Now()
	w.Accept(flow, 0, now)
	call := flow.Begin(now)
	call.End(&ledger.Record{Key: ledger.Key{Class: ledger.Status2xx}, Status: 200, Flags: ledger.Sampled}, time.Millisecond)
	flow.Close(false)
	b.Collect()
	if len(spans) != 1 || spans[0].Listener != "web" || spans[0].Generation != 7 {
		t.Errorf("%+v", spans)
	}
}
