package proxy_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/proxy/listener"
)

// newLedger is a ledger and its writer, whose pages stay: a request that was cut
// may end after the generation has.
func newLedger(t *testing.T) (*ledger.Ledger, *ledger.Writer) {
	t.Helper()
	l, err := ledger.Create(ledger.Options{Generation: 7, Listeners: []string{"web", "raw"}, Routes: []string{"web", "raw"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w, err := ledger.Open(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	return l, w
}

// accounted is a generation that keeps a ledger, and the ledger.
func accounted(t *testing.T, web, raw string, change ...func(*config.Config)) (*node, *ledger.Ledger) {
	t.Helper()
	l, w := newLedger(t)
	return startWith(t, func(o *proxy.Options) { o.Ledger = w }, web, raw, change...), l
}

// totals waits until so many requests have ended, and checks that none is counted beyond.
func totals(t *testing.T, l *ledger.Ledger, ended, inFlight uint64, flows ledger.Flows) *ledger.Reading {
	t.Helper()
	var r ledger.Reading
	var got ledger.Totals
	if !within(30*time.Second, func() bool {
		r = l.Read()
		got = r.Total()
		return r.Damage != "" || got.Requests >= ended && got.InFlight == inFlight && got.Flows == flows
	}) || r.Damage != "" || got.Requests != ended {
		t.Fatalf("%d requests ended, %d in flight, flows %+v, damage %q; want %d, %d, %+v", got.Requests, got.InFlight, got.Flows, r.Damage, ended, inFlight, flows)
	}
	return &r
}

// classes are the requests counted, by protocol, route and class.
func classes(r *ledger.Reading) map[string]uint64 {
	all := map[string]uint64{}
	for _, s := range r.Series {
		all[s.Protocol.String()+" "+r.RouteName(s.Route)+" "+s.Class.String()] += s.Count
	}
	return all
}

func want(t *testing.T, got, want map[string]uint64) {
	t.Helper()
	for what, n := range want {
		if got[what] != n {
			t.Errorf("%s: %d, want %d", what, got[what], n)
		}
		delete(got, what)
	}
	for what, n := range got {
		t.Errorf("%s: %d, want none", what, n)
	}
}

func TestEachRequestAndConnectionIsCountedOnce(t *testing.T) {
	answer := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		case "/bad":
			w.WriteHeader(http.StatusInternalServerError)
		case "/moved":
			w.WriteHeader(http.StatusFound)
		case "/broken":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "not a hundred")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, "hello")
		}
	}
	check := func(t *testing.T, protocol ledger.Protocol, client *http.Client, base string, l *ledger.Ledger) {
		t.Helper()
		for path, times := range map[string]int{"/": 5, "/missing": 2, "/bad": 3, "/moved": 1} {
			for range times {
				res, err := client.Get(base + path)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}
		if res, err := client.Get(base + "/broken"); err == nil {
			if _, err := io.Copy(io.Discard, res.Body); err == nil {
				t.Error("the broken response looks whole")
			}
			res.Body.Close()
		}
		client.CloseIdleConnections()
		eventually(t, "the requests have ended and the connections are closed", func() bool {
			r := l.Read()
			total := r.Total()
			return total.Requests >= 12 && total.InFlight == 0 && total.Flows.Open() == 0
		})
		r := l.Read()
		p := protocol.String()
		want(t, classes(&r), map[string]uint64{p + " web 2xx": 5, p + " web 4xx": 2, p + " web 5xx": 3, p + " web 3xx": 1, p + " web aborted": 1})
		l.Kept(func(k *ledger.Record) {
			if secure := k.Flags&ledger.Secure != 0; secure != strings.HasPrefix(base, "https:") {
				t.Errorf("a request to %s, by TLS: %v", base, secure)
			}
		})
		if flows := r.Total().Flows; flows.Accepted == 0 || flows.Failed == 0 || flows.Failed > flows.Accepted {
			t.Errorf("flows %+v", flows)
		}
	}
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Run("http1", func(t *testing.T) {
		n, l := accounted(t, origin(t, answer), "")
		client := &http.Client{Transport: new(http.Transport), CheckRedirect: stay, Timeout: time.Minute}
		check(t, ledger.HTTP1, client, "http://"+n.web, l)
	})
	eachFlavour(t, func(t *testing.T, f flavour) {
		n, l := accounted(t, origin(t, answer), "", f.config...)
		client := f.client(t, on(n))
		client.CheckRedirect = stay
		check(t, ledger.HTTP2, client, f.url(""), l)
	})
}

func TestOurOwnAnswersAreCounted(t *testing.T) {
	nobody := listen(t)
	gone := nobody.Addr().String()
	nobody.Close()
	n, l := accounted(t, gone, "", func(c *config.Config) {
		c.Routes[0].Match.PathPrefix = "/a"
	})
	c := dial(t, n.web)
	for _, path := range []string{"/a", "/b"} { // 502 and 404
		c.get(path)
		c.response()
	}
	for _, path := range []string{"/a", "/b"} { // the same to a client of gRPC, whose status is always 200
		c.send("GET " + path + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n")
		if res, _ := c.response(); res.StatusCode != http.StatusOK {
			t.Errorf("a gRPC client is answered %d", res.StatusCode)
		}
	}
	r := totals(t, l, 4, 0, ledger.Flows{Accepted: 1, Failed: 1})
	want(t, classes(r), map[string]uint64{"http1 web 5xx": 2, "http1 none 4xx": 2})
	seen := map[string]bool{}
	l.Kept(func(k *ledger.Record) { seen[k.Error] = true })
	if !seen["upstream-connect"] {
		t.Errorf("the kept spans have the errors %v", seen)
	}
}

func TestFailedCallOfGRPCIsAnError(t *testing.T) {
	n, l := accounted(t, grpcOrigin(t), "", h2cUpstream)
	conn := flavours[1].grpcClient(t, on(n))
	if _, err := unary(t.Context(), conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := unary(t.Context(), conn, "wrong"); status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	err := conn.Invoke(t.Context(), "/test.Echo/Nothing", wrapperspb.String(""), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	r := totals(t, l, 3, 0, ledger.Flows{Accepted: 1, Failed: 1})
	want(t, classes(r), map[string]uint64{"http2 web 2xx": 2, "http2 web 5xx": 1})
}

// What is left in the middle of its response was not answered badly.
func TestClientThatLeavesIsNoError(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	n, l := accounted(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(left)
	}), "")
	c := dial(t, n.web)
	c.get("/")
	<-arrived
	totals(t, l, 0, 1, ledger.Flows{Accepted: 1})
	c.Close()
	<-left
	r := totals(t, l, 1, 0, ledger.Flows{Accepted: 1, Closed: 1})
	want(t, classes(r), map[string]uint64{"http1 web left": 1})
}

func TestWebSocketIsOneRequest(t *testing.T) {
	n, l := accounted(t, webSocketOrigin(t, func(conn net.Conn, r io.Reader) { io.Copy(conn, r) }), "")
	c := upgrade(t, n, "")
	totals(t, l, 0, 1, ledger.Flows{Accepted: 1})
	c.Close()
	r := totals(t, l, 1, 0, ledger.Flows{Accepted: 1, Closed: 1})
	want(t, classes(r), map[string]uint64{"websocket web 1xx": 1})
}

// slowLog takes its time for what is logged between the close of an upgraded
// connection and the end of its request's account.
type slowLog struct{ slog.Handler }

func (slowLog) Enabled(context.Context, slog.Level) bool { return true }
func (h slowLog) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (slowLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "request" {
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// The process may end as soon as Run has returned: nothing may be open then.
func TestAccountIsSettledWhenAGenerationEnds(t *testing.T) {
	const many = 20
	l, w := newLedger(t)
	n := startWith(t, func(o *proxy.Options) { o.Ledger, o.Log = w, slog.New(slowLog{slog.DiscardHandler}) },
		webSocketOrigin(t, func(conn net.Conn, r io.Reader) { io.Copy(io.Discard, r) }), "", quick)
	var all []*client
	for range many {
		all = append(all, upgrade(t, n, ""))
	}
	n.term()
	n.lastCall()
	for _, c := range all {
		c.Close()
	}
	<-n.done
	r := l.Read()
	if total := r.Total(); total.InFlight != 0 || total.Flows.Open() != 0 || total.Requests != many {
		t.Errorf("%d in flight, %d ended, %+v", total.InFlight, total.Requests, total.Flows)
	}
}

func TestStreamsAreCounted(t *testing.T) {
	nobody := listen(t)
	gone := nobody.Addr().String()
	nobody.Close()
	echo := serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) })
	for _, test := range []struct {
		name, upstream string
		end            func(address string)
		flows          ledger.Flows
		class          string
	}{
		{"ended", echo, func(address string) { c := dial(t, address); c.send("x"); c.r.ReadByte(); c.CloseWrite(); c.ended() }, ledger.Flows{Accepted: 1, Closed: 1}, "ended"},
		{"reset by the client", echo, func(address string) { c := dial(t, address); c.send("x"); c.r.ReadByte(); c.SetLinger(0); c.Close() }, ledger.Flows{Accepted: 1, Closed: 1, Reset: 1}, "ended"},
		{"nobody behind", gone, func(address string) {
			// Its reset may be there before the client knows that it is connected.
			if c, err := net.Dial("tcp", address); err == nil {
				c.Read(make([]byte, 1))
				c.Close()
			}
		}, ledger.Flows{Accepted: 1, Closed: 1, Reset: 1, Failed: 1}, "failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, l := accounted(t, "", test.upstream)
			test.end(n.raw)
			want(t, classes(totals(t, l, 1, 0, test.flows)), map[string]uint64{"tcp raw " + test.class: 1})
		})
	}
}

func TestResetOfTheClientIsCounted(t *testing.T) {
	n, l := accounted(t, origin(t, hello), "")
	c := dial(t, n.web)
	c.get("/")
	c.response()
	c.SetLinger(0)
	c.Close()
	totals(t, l, 1, 0, ledger.Flows{Accepted: 1, Closed: 1, Reset: 1})
}

func TestWhatTheDeadlineCutsIsDeclared(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	var arrived sync.WaitGroup
	arrived.Add(2)
	n, l := accounted(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		arrived.Done()
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}), "", quick)
	for range 2 {
		dial(t, n.web).get("/")
	}
	arrived.Wait()
	n.term()
	n.drained(listener.Tally{Cut: 2})
	r := l.Read()
	if total := r.Total(); r.Cut != 2 || total.InFlight != 0 {
		t.Errorf("%d cut, %d in flight", r.Cut, total.InFlight)
	}
	l.Kept(func(k *ledger.Record) {
		if k.Flags&ledger.Anomalous == 0 {
			t.Errorf("the span of a request that was cut: %+v", k)
		}
	})
}

func TestLedgerOfAnotherConfigurationIsNotKept(t *testing.T) {
	l, err := ledger.Create(ledger.Options{Generation: 7, Listeners: []string{"other"}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := ledger.Open(l.FD())
	if err != nil {
		t.Fatal(err)
	}
	n := startWith(t, func(o *proxy.Options) { o.Ledger = w }, origin(t, hello), "")
	c := dial(t, n.web)
	c.get("/")
	c.response()
	if r := l.Read(); r.Total().Started != 0 || r.Damage != "" {
		t.Errorf("%+v", r)
	}
}
