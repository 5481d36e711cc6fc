package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestRiseAndFall(t *testing.T) {
	const rise, fall = 2, 3
	for _, test := range []struct {
		results string // of checks: + passed, - failed
		ups     string // what is believed after each: u up, d down
	}{
		{"+++", "uuu"},
		{"-+-+", "dddd"},
		{"---++", "ddddu"},
		{"+--+--+", "uuuuuuu"},
		{"+---", "uuud"},
		{"+---+-++", "uuuddddu"},
		{"+---++---", "uuudduuud"},
	} {
		var s State
		for i, r := range test.results {
			before := s
			changed := s.Heard(r == '+', time.Unix(int64(i), 0), rise, fall)
			if s.Up != (test.ups[i] == 'u') || !s.Known {
				t.Errorf("%s: after %d it is up: %v, want %c", test.results, i+1, s.Up, test.ups[i])
			}
			if want := !before.Known || before.Up != s.Up; changed != want {
				t.Errorf("%s: check %d has changed it: %v, want %v", test.results, i+1, changed, want)
			}
			if changed != s.Since.Equal(time.Unix(int64(i), 0)) {
				t.Errorf("%s: after %d it is so since %v", test.results, i+1, s.Since)
			}
		}
	}
}

func TestSlowStartSteps(t *testing.T) {
	const length = 10 * time.Second
	at, steps := time.Duration(0), []int(nil)
	for {
		step, next := Step(length, at)
		steps = append(steps, step)
		if next == 0 {
			break
		}
		at += next
	}
	if got, want := fmt.Sprint(steps), "[1 2 3 4 5 6 7 8 9 10]"; got != want || at != 9*time.Second {
		t.Errorf("steps %s over %v, want %s over 9s", got, at, want)
	}
	if step, next := Step(0, 0); step != Steps || next != 0 {
		t.Errorf("without a slow start step %d, then %v", step, next)
	}
}

func target(addr net.Addr, path string) Target {
	return Target{netip.MustParseAddrPort(addr.String()), path, time.Second, 30 * time.Second}
}

func TestChecksByTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	checked := target(l.Addr(), "")
	if err := checked.Check(t.Context()); err != nil {
		t.Errorf("a port that is served: %v", err)
	}
	l.Close()
	if err := checked.Check(t.Context()); err == nil {
		t.Error("a port that nobody serves passes")
	}
}

func TestChecksByHTTP(t *testing.T) {
	status := http.StatusOK
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/up" || !r.Close {
			t.Errorf("asked for %s, to be closed: %v", r.URL, r.Close)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
	}))
	defer s.Close()
	for code, passes := range map[int]bool{200: true, 204: true, 302: false, 404: false, 503: false} {
		status = code
		if err := target(s.Listener.Addr(), "/up").Check(t.Context()); (err == nil) != passes {
			t.Errorf("status %d: %v", code, err)
		}
	}
}

// A server that accepts and never answers is what a timeout is for.
func TestCheckThatIsNotAnswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	checked := target(l.Addr(), "/")
	checked.Timeout = 50 * time.Millisecond
	if err := checked.Check(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	checked.HTTPPath = ""
	checked.Timeout = 30 * time.Second
	if err := checked.Check(t.Context()); err != nil {
		t.Errorf("the same by TCP, which is answered: %v", err)
	}
}

func TestWatchKeepsItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Nobody can be dialled from inside the bubble: each check fails at once.
		watched := Target{Addr: netip.MustParseAddrPort("127.0.0.1:1"), Interval: time.Second, Timeout: time.Second}
		ctx, cancel := context.WithCancel(t.Context())
		began, reports := time.Now(), 0
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			watched.Watch(ctx, func(err error) {
				if err == nil {
					t.Error("a port that nobody serves passes")
				}
				if reports++; reports == 1 && time.Since(began) != 0 {
					t.Errorf("the first check took %v to begin", time.Since(began))
				}
				if reports == 5 {
					cancel()
				}
			})
		}()
		<-ended
		if took := time.Since(began); reports != 5 || took <= 3*time.Second || took > 4*time.Second {
			t.Errorf("%d reports in %v", reports, took)
		}
	})
}
