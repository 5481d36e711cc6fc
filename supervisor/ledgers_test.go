package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor/account"
)

// keepsAccount is a generation that keeps its ledger. It says nothing to
// requests for /hang, and overwrites the ledger when asked for /scribble. Told to
// stop, it ends when its connections have.
func keepsAccount(listeners []net.Listener, ready func(), stop <-chan os.Signal) {
	var open sync.WaitGroup
	file, err := contract.Ledger()
	if err != nil || file == nil {
		fmt.Fprintln(os.Stderr, "no ledger was passed:", err)
		os.Exit(97)
	}
	w, err := ledger.Open(int(file.Fd()))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(96)
	}
	ready()
	for _, l := range listeners {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				open.Go(func() {
					defer conn.Close()
					flow := new(ledger.Flow)
					w.Accept(flow, 0, time.Now())
					defer flow.Close(false)
					r, err := http.ReadRequest(bufio.NewReader(conn))
					if err != nil {
						return
					}
					began := time.Now()
					call := flow.Begin(began)
					record := ledger.Record{Key: ledger.Key{Class: ledger.Status2xx}, Status: 200, Path: r.URL.Path}
					switch {
					case r.URL.Path == "/hang":
						select {}
					case r.URL.Path == "/scribble":
						unix.Pwrite(int(file.Fd()), []byte(strings.Repeat("scribble", 100)), 0)
					case r.URL.Path == "/sampled":
						record.Flags |= ledger.Sampled
					case r.Header.Get("Baton-Probe") != "":
						record.Flags |= ledger.Probing
					}
					call.End(&record, time.Since(began))
					fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n%s\n", strconv.Itoa(os.Getpid())[:1])
				})
			}
		}()
	}
	<-stop
	open.Wait()
}

// baton says that a server keeps the whole contract.
func baton(c *config.Config) {
	c.Proxy.Baton = true
	c.Routes = []config.Route{{Name: "all", Listeners: []string{"web"}, Upstreams: []config.Backend{{Name: "nobody"}}}}
	c.Upstreams = []config.Upstream{{Name: "nobody", Endpoints: []string{"127.0.0.1:9"}}}
}

// served is what a generation has answered, without probes.
func (n *node) served(id uint64) (ledger.Totals, ledger.Reading) {
	n.t.Helper()
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	for _, g := range n.s.generations {
		if g.id == id {
			r, err := g.book.Reading()
			if err != nil {
				n.t.Fatal(err)
			}
			return r.Sum(func(k ledger.Key) bool { return k.Arm != ledger.Probe }), r
		}
	}
	n.t.Fatalf("there is no generation %d", id)
	return ledger.Totals{}, ledger.Reading{}
}

func TestAccountIsReadAndGoesOn(t *testing.T) {
	var mu sync.Mutex
	var spans []account.RequestSpan
	n := serve(t, conf(t, "keeps-account", baton), func(o *Options) {
		o.RequestSpans = func(s []account.RequestSpan) {
			mu.Lock()
			defer mu.Unlock()
			spans = append(spans, s...)
		}
	})
	get := func(path string, times int) {
		t.Helper()
		for range times {
			if _, err := n.get(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	get("/", 5)
	get("/sampled", 1)
	if served, r := n.served(1); served.Requests != 6 || r.Damage != "" || r.Generation != 1 || served.Classes[ledger.Status2xx] != 6 {
		t.Fatalf("%d requests, damage %q", served.Requests, r.Damage)
	}
	eventually(t, "the sampled request's span arrives", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range spans {
			if s.Path == "/sampled" && s.Generation == 1 && s.Listener == "web" && s.Route == "all" && time.Since(s.Began) < time.Hour {
				return true
			}
		}
		return false
	})
	mu.Lock()
	power := ledger.Power(spans[len(spans)-1].Counted())
	mu.Unlock()
	if _, ok := n.s.Exemplar(account.RequestLabels{Listener: "web", Route: "all", Protocol: "http1", Class: "2xx"}, power); !ok {
		t.Error("it is no exemplar")
	}

	const hanging = 3
	for range hanging {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /hang HTTP/1.1\r\nHost: test\r\n\r\n")
	}
	eventually(t, "the requests hang", func() bool {
		st := n.generation(1).Ledger
		return st.InFlight == hanging && st.OldestMS > 0 && st.ByListener["web"].InFlight == hanging
	})
	_, before := n.served(1)
	total := before.Total() // with probes

	// Killed, its last entries are read, and the sums go on with the next.
	syscall.Kill(n.generation(1).PID, syscall.SIGKILL)
	eventually(t, "the next generation serves alone", func() bool {
		st := n.s.Status()
		return st.State == "serving" && st.Current == 2 && len(st.Generations) == 1
	})
	eventually(t, "the release after the crash has ended", func() bool { return len(n.s.Results()) == 2 })
	results := n.s.Results()
	told := strings.Join(results[len(results)-1].Evidence, "\n")
	for _, want := range []string{
		fmt.Sprintf("generation 1 had %d requests and streams in flight when it ended; %d had ended, and of the latest %d it is known how: %d 2xx", hanging, total.Requests, total.Requests, total.Requests),
		"listener web, route all: 2xx after ",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("the release after the crash says %q, want %q", told, want)
		}
	}
	get("/", 4)
	labels := account.RequestLabels{Listener: "web", Route: "all", Protocol: "http1", Class: "2xx"}
	served, now := n.served(2)
	all := n.s.Counted()
	if own := now.Total().Requests; served.Requests != 4 || all.Requests[labels].Count != total.Requests+own || all.Unfinished != hanging || all.Damaged != 0 {
		t.Errorf("the second has served %d; in all %d of %d and %d, %d unfinished, %d damaged", served.Requests,
			all.Requests[labels].Count, total.Requests, own, all.Unfinished, all.Damaged)
	}
	if flows := all.Flows["web"]; flows.Accepted != total.Flows.Accepted+now.Total().Flows.Accepted {
		t.Errorf("%+v flows in all", flows)
	}

	// Scribbled on, it is damaged for good. Clients do not notice.
	get("/scribble", 1)
	get("/", 1)
	st := n.generation(2).Ledger
	if !strings.Contains(st.Damage, "layout") || st.Requests < 4 {
		t.Errorf("%+v", st)
	}
	if all := n.s.Counted(); all.Damaged != 1 || all.Requests[labels].Count < total.Requests+4 {
		t.Errorf("%d damaged, %d requests in all", all.Damaged, all.Requests[labels].Count)
	}

	// A release begins a phase, and another server keeps no account.
	if res := n.release(n.like("serve", func(c *config.Config) { c.Proxy.Baton = false }), Request{NoVerify: true}); res.Outcome != Passed {
		t.Fatal(res.Reason)
	}
	n.s.mu.Lock()
	g := n.s.generations[len(n.s.generations)-1]
	n.s.mu.Unlock()
	if _, err := g.book.Reading(); !errors.Is(err, account.ErrNoLedger) {
		t.Errorf("the account of another server: %v", err)
	}
}

// What was accepted before the candidate got flows is told apart from what came
// after: only that is to be compared.
func TestReleaseBeginsAPhase(t *testing.T) {
	c := conf(t, "keeps-account", baton)
	n := serve(t, c)
	old, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	eventually(t, "the first flow is accepted", func() bool {
		st := n.generation(1).Ledger
		return st.OpenFlows == 1
	})
	n.s.mu.Lock()
	first := n.s.generations[0].book
	n.s.mu.Unlock()
	if res := n.release(n.like("keeps-account"), Request{NoVerify: true}); res.Outcome != Passed {
		t.Fatal(res.Reason)
	}
	if _, err := ask(old, "/"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.get("/"); err != nil {
		t.Fatal(err)
	}
	_, second := n.served(2)
	for arm, want := range map[ledger.Arm]uint64{ledger.New: 1, ledger.Old: 0} {
		if got := second.Sum(func(k ledger.Key) bool { return k.Arm == arm }); got.Requests != want {
			t.Errorf("the candidate: %v: %d requests, want %d", arm, got.Requests, want)
		}
	}
	eventually(t, "the first generation has drained", func() bool { return n.generation(1) == nil })
	all := n.s.Counted()
	if all.Unfinished != 0 || all.Damaged != 0 {
		t.Errorf("%d unfinished, %d damaged", all.Unfinished, all.Damaged)
	}
	last := first.Read() // the last that was read
	if got := last.Sum(func(k ledger.Key) bool { return k.Arm == ledger.Old }); got.Requests != 1 {
		t.Errorf("%d requests on flows from before, want 1", got.Requests)
	}
}
