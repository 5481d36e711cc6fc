package supervisor

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
)

// keeping is a server that keeps a ledger, truthfully but for one fault.
type keeping struct {
	fault    string
	w        *ledger.Writer
	raw      []byte
	accepted atomic.Int64
	requests atomic.Int64
}

// keepLedger makes a test's generation one that keeps a ledger if it is to be
// one: its behaviour begins with "ledger".
func keepLedger(how string, server *http.Server, listeners []net.Listener) {
	fault, ok := strings.CutPrefix(how, "ledger")
	if !ok {
		return
	}
	fd, err := strconv.Atoi(os.Getenv(contract.EnvLedgerFD))
	if err != nil {
		os.Exit(97)
	}
	k := &keeping{fault: strings.TrimPrefix(fault, "-")}
	if k.w, err = ledger.Open(fd); err != nil {
		os.Exit(96)
	}
	k.raw, _ = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	for i, l := range listeners {
		listeners[i] = &keptListener{l, k}
	}
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	server.Handler = http.HandlerFunc(k.serve)
}

type keptListener struct {
	net.Listener
	k *keeping
}

type connKey struct{}

type keptConn struct {
	net.Conn
	flow ledger.Flow
}

func (l *keptListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	kept := &keptConn{Conn: c}
	times := 1
	if l.k.accepted.Add(1) == 1 {
		switch l.k.fault {
		case "forgets-one":
			times = 0
		case "counts-one-twice":
			times = 2
		}
	}
	for range times {
		l.k.w.Accept(&kept.flow, 0, time.Now())
	}
	return kept, nil
}

func (c *keptConn) Close() error {
	c.flow.Close(false)
	return c.Conn.Close()
}

func (k *keeping) serve(w http.ResponseWriter, r *http.Request) {
	conn := r.Context().Value(connKey{}).(*keptConn)
	began := time.Now()
	call := conn.flow.Begin(began)
	status := 200
	n := k.requests.Add(1)
	switch k.fault {
	case "fails-all":
		status = 502
	case "fails-later":
		if n > fineFor {
			status = 500
		}
	case "fails-after-3s":
		if time.Since(bornAt) > 3*time.Second {
			status = 500
		}
	case "scribbles":
		if n > probesEach {
			k.raw[24]++ // in the header: whose ledger it is
		}
	case "knows-not-itself":
		if r.Header.Get("Baton-Probe") == "1" && n > probesEach {
			w.Header().Set("Baton-Server-Id", "8")
		}
	}
	w.WriteHeader(status)
	fmt.Fprint(w, os.Getenv(contract.EnvGenerationID))
	record := ledger.Record{Key: ledger.Key{Route: ledger.NoRoute, Class: ledger.ClassOf(status)}, Status: status}
	call.End(&record, time.Since(began))
}

// keeps makes a configuration of servers that keep a ledger.
func keeps(c *config.Config) { c.Proxy.Baton = true }

// clients ask on new connections until stopped, whatever they are answered: one after
// the other, and at full length 200 a second, whether those before have been answered
// or not.
func (n *node) clients() (stop func()) {
	quit := make(chan struct{})
	var all sync.WaitGroup
	wait := 2 * time.Millisecond
	if atLength() {
		wait = 5 * time.Millisecond
	}
	tick := time.NewTicker(wait)
	all.Go(func() {
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if atLength() {
				all.Go(func() { n.get("/") })
				continue
			}
			n.get("/")
		}
	})
	return func() { tick.Stop(); close(quit); all.Wait() }
}

// What a generation writes down is held against what the kernel counted, and
// what it answered against the budget.
func TestBadLedgers(t *testing.T) {
	for fault, gate := range bad(map[string]string{
		"forgets-one":      "conservation",
		"counts-one-twice": "conservation",
		"fails-all":        "errors",
		"fails-later":      "errors",
		"knows-not-itself": "identity",
	}, map[string]string{"fails-after-3s": "errors"}) {
		t.Run(fault, func(t *testing.T) {
			n := serve(t, conf(t, "ledger", keeps))
			stop := n.clients()
			candidate := n.like("ledger-" + fault)
			if gate == "errors" { // found while it is watched, the others by the end
				watched(candidate)
			}
			n.violation(candidate, gate)
			stop()
			if got, err := n.get("/"); err != nil || got != "1" {
				t.Errorf("after the rollback: generation %q, %v", got, err)
			}
		})
	}
}

// A ledger that was written over is no ground for anything.
func TestDamagedLedgerIsInconclusive(t *testing.T) {
	n := serve(t, conf(t, "ledger", keeps))
	stop := n.clients()
	defer stop()
	res := n.release(n.like("ledger-scribbles", func(c *config.Config) { c.Release.Verify.Window = 300 * time.Millisecond }), Request{})
	if res.Outcome != Inconclusive || !strings.Contains(res.Reason, "ledger is damaged") {
		t.Errorf("%+v, %+v", res, res.Verdict)
	}
}

// The books agree over one release after the other, whatever is on the way; and
// once more when a generation has ended.
func TestBooksAgree(t *testing.T) {
	n := serve(t, conf(t, "ledger", keeps))
	stop := n.load()
	for range 3 {
		r, err := n.enqueue(n.conf, Request{})
		if err != nil {
			t.Fatal(err)
		}
		res := n.ended(r)
		if res.Outcome != Passed || !strings.Contains(fmt.Sprint(res.Verdict.Findings), "conservation held") {
			t.Fatalf("%+v, %+v", res, res.Verdict)
		}
		old := r.previous
		select {
		case <-old.exited:
		case <-time.After(30 * time.Second):
			t.Fatal("the previous generation does not end")
		}
		eventually(t, "it is forgotten", func() bool { return n.generation(old.id) == nil })
		counts, err := old.flows.Read()
		if err != nil {
			t.Fatal(err)
		}
		reading, err := old.book.Reading()
		if err != nil || reading.Total().Flows.Accepted != account.Sum(counts)[flows.Established] {
			t.Errorf("generation %d: %d flows established, %d accepted, %v", old.id, account.Sum(counts)[flows.Established], reading.Total().Flows.Accepted, err)
		}
	}
	if ok, failed := stop(); failed != 0 || ok == 0 {
		t.Errorf("%d requests answered, %d failed", ok, failed)
	}
}
