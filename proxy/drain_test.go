package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

var nothing listener.Tally

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }

func TestStrictKeepAliveClientsSeeNoFailureInADrain(t *testing.T) {
	n := start(t, origin(t, hello), "")
	const clients = 8
	var served atomic.Int64
	failures := make(chan error, clients)
	for range clients {
		c := dial(t, n.web)
		go func() {
			failures <- func() error {
				for {
					if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
						return fmt.Errorf("request: %w", err)
					}
					res, err := http.ReadResponse(c.r, nil)
					if err != nil {
						return fmt.Errorf("response: %w", err)
					}
					if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hello" {
						return fmt.Errorf("body %q: %w", body, err)
					}
					served.Add(1)
					if res.Close {
						c.Close()
						return nil
					}
				}
			}()
		}()
	}
	eventually(t, "requests flow", func() bool { return served.Load() > 20*clients })
	n.stop()
	for range clients {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	n.drained(nothing)
	if !n.told("READY=1") || !n.told("STOPPING=1") || !n.told("X_BATON_CUT=0") || !n.told("X_BATON_IDLE_CLOSED=0") {
		t.Errorf("the supervisor was told %q", n.states)
	}
}

func TestIdleConnectionIsToldOnItsNextResponse(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dial(t, n.web)
	c.get("/")
	if res, _ := c.response(); res.Close {
		t.Fatal("closed before the drain")
	}
	eventually(t, "idle", func() bool { return n.Counts()[listener.Idle] == 1 })
	n.stop()
	eventually(t, "it says what is left", func() bool { return n.told("STATUS=draining: 1 idle") })
	// Still there, and served.
	c.get("/")
	if res, body := c.response(); !res.Close || body != "hello" {
		t.Errorf("close %t, body %q; want to be told to close, and hello", res.Close, body)
	}
	c.ended()
	n.drained(nothing)
}

// A supervisor that is stopped reads nothing: its queue is full at some time, and whoever
// tells it something waits. The drain does not.
func TestSupervisorThatDoesNotRead(t *testing.T) {
	silent := func(o *proxy.Options) {
		o.Notify = func(ctx context.Context, state ...string) error {
			if state[0] == "READY=1" {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
	}
	n := startWith(t, silent, origin(t, hello), "")
	c := dial(t, n.web)
	c.get("/")
	c.response()
	n.stop()
	c.get("/")
	if res, body := c.response(); !res.Close || body != "hello" {
		t.Errorf("close %t, body %q; want to be told to close, and hello", res.Close, body)
	}
	c.ended()
	n.drained(nothing)
}

func TestConnectionWithoutARequestYetIsServedOnce(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dial(t, n.web)
	eventually(t, "accepted", func() bool { return n.Counts()[listener.New] == 1 })
	n.stop()
	c.get("/")
	if res, body := c.response(); !res.Close || body != "hello" {
		t.Errorf("close %t, body %q", res.Close, body)
	}
	n.drained(nothing)
}

func TestQueuedConnectionsAreAcceptedAtTheEnd(t *testing.T) {
	// One connection at most keeps the accept loop from emptying the queue.
	n := start(t, origin(t, hello), "", func(c *config.Config) { c.Listeners[0].MaxConnections = 1 })
	first := dial(t, n.web)
	first.get("/")
	first.response()
	eventually(t, "idle", func() bool { return n.Counts()[listener.Idle] == 1 })
	const queued = 20
	var waiting []*client
	for range queued {
		c := dial(t, n.web)
		c.get("/")
		waiting = append(waiting, c)
	}
	if got := n.Counts(); got[listener.Idle] != 1 || got[listener.New]+got[listener.Active] != 0 {
		t.Fatalf("max_connections is 1, but there are %s", got)
	}
	n.term()
	for _, c := range waiting {
		if res, body := c.response(); !res.Close || body != "hello" {
			t.Errorf("close %t, body %q", res.Close, body)
		}
	}
	first.Close()
	n.drained(nothing)
}

func TestRequestsInFlightFinishInADrain(t *testing.T) {
	proceed := make(chan struct{})
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/head-later": // the response begins after SIGTERM
			<-proceed
			io.WriteString(w, "late")
		case "/body-later": // it began before
			w.Header().Set("Content-Length", "11")
			io.WriteString(w, "begun,")
			w.(http.Flusher).Flush()
			<-proceed
			io.WriteString(w, "ended")
		case "/upload":
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "got %d", len(body))
		}
	}), "")
	head, body, upload := dial(t, n.web), dial(t, n.web), dial(t, n.web)
	head.get("/head-later")
	body.get("/body-later")
	upload.send("POST /upload HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("x", 40))
	res, err := http.ReadResponse(body.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, len("begun,"))
	if _, err := io.ReadFull(res.Body, first); err != nil {
		t.Fatal(err)
	}
	eventually(t, "three requests", func() bool { return n.Counts()[listener.Active] == 3 })
	n.stop()

	upload.send(strings.Repeat("x", 60))
	if res, text := upload.response(); text != "got 100" || !res.Close {
		t.Errorf("upload: %q, close %t", text, res.Close)
	}
	close(proceed)
	if res, text := head.response(); text != "late" || !res.Close {
		t.Errorf("head after SIGTERM: %q, close %t", text, res.Close)
	}
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "ended" || res.Close {
		t.Errorf("body: %q, %v, close %t", rest, err, res.Close)
	}
	// The last one's head was out before the drain: it is told now.
	body.get("/upload")
	if res, _ := body.response(); !res.Close {
		t.Error("the response after was not told to close")
	}
	n.drained(nothing)
}

func TestPipelinedRequestDoesNotResetTheResponseBefore(t *testing.T) {
	n := start(t, origin(t, hello), "")
	c := dial(t, n.web)
	eventually(t, "accepted", func() bool { return n.Counts()[listener.New] == 1 })
	n.stop()
	// More than one read's worth behind the request, so that some is left in the kernel.
	c.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n" + strings.Repeat("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 1000))
	if _, body := c.response(); body != "hello" {
		t.Errorf("body %q", body)
	}
	c.ended()
	c.Close()
	n.drained(nothing)
}

func TestLastCallClosesAndCounts(t *testing.T) {
	proceed := make(chan struct{})
	defer close(proceed)
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stuck" {
			<-proceed
		}
	})
	for _, by := range []string{"second SIGTERM", "deadline"} {
		t.Run(by, func(t *testing.T) {
			n := start(t, web, serveTCP(t, func(c *net.TCPConn) { io.Copy(c, c) }), func(c *config.Config) {
				if by == "deadline" {
					c.Release.DrainTimeout = 300 * time.Millisecond
				}
			})
			idle, fresh, stuck, raw := dial(t, n.web), dial(t, n.web), dial(t, n.web), dial(t, n.raw)
			idle.get("/")
			idle.response()
			stuck.get("/stuck")
			raw.send("x")
			if b, err := raw.r.ReadByte(); b != 'x' {
				t.Fatal(b, err)
			}
			eventually(t, "all four", func() bool {
				return n.Counts() == listener.Counts{listener.New: 1, listener.Active: 1, listener.Idle: 1, listener.TCP: 1}
			})
			n.term()
			began := time.Now()
			if by != "deadline" {
				n.lastCall()
			}
			idle.ended()
			fresh.ended()
			idle.Close()
			fresh.Close()
			if _, err := raw.r.ReadByte(); err == nil {
				t.Error("the stream goes on")
			}
			if _, err := http.ReadResponse(stuck.r, nil); err == nil {
				t.Error("the request that is stuck was answered")
			}
			n.drained(listener.Tally{Cut: 2, IdleClosed: 2})
			// A tenth of the drain timeout later the request is cut; no later grace is needed.
			if took := time.Since(began); by == "deadline" && took > 1200*time.Millisecond {
				t.Errorf("took %v", took)
			}
			if !n.told("X_BATON_CUT=2") || !n.told("X_BATON_IDLE_CLOSED=2") {
				t.Errorf("the supervisor was told %q", n.states)
			}
		})
	}
}

func TestRequestFinishesWithinTheLastCall(t *testing.T) {
	proceed := make(chan struct{})
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		<-proceed
		io.WriteString(w, "hello")
	}), "")
	c := dial(t, n.web)
	c.get("/")
	eventually(t, "in flight", func() bool { return n.Counts()[listener.Active] == 1 })
	n.stop()
	n.lastCall()
	eventually(t, "last call", func() bool { return n.told("STATUS=last call: 1 requests") })
	close(proceed)
	if _, body := c.response(); body != "hello" {
		t.Errorf("body %q", body)
	}
	n.drained(nothing)
}

func TestRequestThatMeetsTheCloseOfItsIdleConnectionIsCut(t *testing.T) {
	var served atomic.Int64
	n := start(t, origin(t, func(http.ResponseWriter, *http.Request) { served.Add(1) }), "")
	c := dial(t, n.web)
	c.get("/")
	c.response()
	eventually(t, "idle", func() bool { return n.Counts()[listener.Idle] == 1 })
	n.stop()
	n.lastCall()
	c.ended() // the proxy has closed its side; ours is open
	c.get("/")
	c.CloseWrite()
	n.drained(listener.Tally{Cut: 1})
	if served.Load() != 1 {
		t.Errorf("%d requests were served, want only the first", served.Load())
	}
}
