// Package health asks reals whether they serve, and says when the answer counts.
//
// One failed check says little: a real falls after several in a row, rises after
// several in a row, and its very first check decides alone, since nothing is known
// before it.
package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Target is what is asked, and how often.
type Target struct {
	Addr netip.AddrPort
	// HTTPPath is asked for by HTTP. Empty means that a connection is enough.
	HTTPPath string
	// Interval is the time between the beginnings of two checks, Timeout bounds one.
	Interval, Timeout time.Duration
}

// Watch checks until ctx ends, and hands report what each check has found: nil
// means healthy. Reports come one at a time, the first without delay.
func (t Target) Watch(ctx context.Context, report func(error)) {
	// Checks of many reals that began together spread out after the first.
	wait := time.Duration(rand.Int64N(int64(t.Interval))) + 1
	for {
		err := t.Check(ctx)
		if ctx.Err() != nil {
			return
		}
		report(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = t.Interval
	}
}

// Check is one check.
func (t Target) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, t.Timeout)
	defer cancel()
	if t.HTTPPath == "" {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", t.Addr.String())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Addr.String()+t.HTTPPath, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "baton-health")
	// A connection of its own for each check, no proxy of the environment, and no
	// redirect: it is this real that was asked.
	transport := http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("GET %s: %s", t.HTTPPath, resp.Status)
	}
	return nil
}

// State is what the checks of one real have come to. The zero value knows nothing.
type State struct {
	// Known is whether there was a check at all, Up what they came to.
	Known, Up bool
	// Since is when that was last decided.
	Since time.Time
	// against is how many checks in a row have contradicted Up.
	against int
}

// Heard takes the result of one check and reports whether it has decided something.
func (s *State) Heard(passed bool, now time.Time, rise, fall int) bool {
	needed := fall
	switch {
	case !s.Known:
		needed = 1
	case passed == s.Up:
		s.against = 0
		return false
	case passed:
		needed = rise
	}
	if s.against++; s.against < needed {
		return false
	}
	*s = State{Known: true, Up: passed, Since: now}
	return true
}

// Steps is how many steps a slow start has.
const Steps = 10

// Step is how far a slow start of that length has come after some time, 1 to [Steps], and how long it is until the next step. 0 means that none follows.
func Step(slowStart, since time.Duration) (step int, next time.Duration) {
	if since >= slowStart {
		return Steps, 0
	}
	if step = 1 + int(since*Steps/slowStart); step == Steps {
		return Steps, 0
	}
	return step, slowStart*time.Duration(step)/Steps - since
}
