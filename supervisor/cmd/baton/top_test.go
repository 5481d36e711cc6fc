package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/account"
)

// A picture has what has changed since the one before, by the second; of another
// supervisor's counters nothing is made.
func TestTopShowsRates(t *testing.T) {
	at := func(pid int, flows, requests, errors uint64) supervisor.Status {
		return supervisor.Status{
			Node: "edge-1", State: "serving", PID: pid, Current: 2,
			Generations: []supervisor.GenerationStatus{{
				ID: 2, State: supervisor.Serving, OpenFlows: 7, Flows: map[string]uint64{"established": flows},
				Ledger: &account.LedgerStatus{Written: true, Requests: requests, Errors: errors, InFlight: 3, P99MS: 1.5}, Message: "serving",
			}},
			Listeners: []supervisor.ListenerStatus{{
				Name: "web", Address: "127.0.0.1:80", Protocol: "http", Generation: 2,
				Flows: map[string]uint64{"established": flows}, Runs: map[string]uint64{"lost": flows / 100}, Dropped: 4,
			}},
			Problems: []supervisor.Problem{{What: supervisor.StateFile, Says: "the disk is full", Do: "make room"}},
		}
	}
	draw := func(before, now supervisor.Status, since time.Duration) string {
		var b bytes.Buffer
		drawTop(&b, before, now, since)
		return b.String()
	}
	for name, want := range map[string]struct {
		picture string
		lines   []string
	}{
		"two seconds later": {draw(at(1, 100, 50, 5), at(1, 300, 250, 5), 2*time.Second), []string{
			`^edge-1: serving, generation 2,`, `^problem: the disk is full$`, `^ +→ make room$`,
			`^2 +serving +- +- +100 +7 +100 +0 +3 +1\.5ms +serving$`, `^web +2 +127\.0\.0\.1:80 +http +100 +0 +1 +0$`,
		}},
		"the first": {draw(supervisor.Status{}, at(1, 300, 250, 5), 0), []string{
			`^2 +serving +- +- +- +7 +- +- +3 +1\.5ms +serving$`, `^web +2 +127\.0\.0\.1:80 +http +- +- +- +-$`,
		}},
		"another supervisor":       {draw(at(1, 300, 250, 5), at(2, 400, 250, 5), time.Second), []string{`^2 +serving +- +- +- +7 +-`}},
		"a generation that is new": {draw(supervisor.Status{PID: 1}, at(1, 30, 20, 5), time.Second), []string{`^2 +serving +- +- +30 +7 +20 +5 `}},
	} {
		for _, line := range want.lines {
			if !regexp.MustCompile("(?m)" + line).MatchString(want.picture) {
				t.Errorf("%s: no line %s in\n%s", name, line, want.picture)
			}
		}
	}
}

// A picture is cut to the screen, by characters, and leaves nothing of the one before.
func TestPictureFitsTheScreen(t *testing.T) {
	got := fit("→→→→\nab\nc\nd\n", 3, 3)
	if want := firstLineOf + "→→→" + clearLine + "\nab" + clearLine + clearRest; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := fit(strings.Repeat("x\n", 5), 0, 80); got != firstLineOf+"x"+clearLine+clearRest {
		t.Errorf("%q", got)
	}
}
