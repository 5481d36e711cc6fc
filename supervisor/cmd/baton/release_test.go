package main

import (
	"testing"

	"github.com/baton-mesh/baton/supervisor"
)

// What a rollback exits with, by what it came to: results of releases that it was to
// abort, or of its own.
func TestGoBack(t *testing.T) {
	for name, test := range map[string]struct {
		cause   string
		outcome supervisor.Outcome
		want    int
	}{
		"gone back":                 {"rollback", supervisor.Passed, 0},
		"another request was later": {"rollback", supervisor.Superseded, 5}, // nothing was tried
		"not started":               {"rollback", supervisor.Refused, 6},
		"failed":                    {"rollback", supervisor.RollbackFailed, 6},
		"aborted after the shift":   {"command", supervisor.RolledBack, 0},
		"aborted before it":         {"sighup", supervisor.Refused, 0},
		"abort that failed":         {"command", supervisor.RollbackFailed, 6},
	} {
		t.Run(name, func(t *testing.T) {
			results := []supervisor.Result{
				{ID: 1, Cause: "command", Outcome: supervisor.Passed}, // the abort came too late for it
				{ID: 2, Cause: "command", Outcome: supervisor.Inconclusive},
				{ID: 3, Cause: test.cause, Outcome: test.outcome, ExitCode: test.outcome.ExitCode()},
			}
			asked := 0
			res, err := goBack(func() (supervisor.Result, error) { asked++; return results[asked-1], nil })
			if err != nil || res.ID != 3 || res.ExitCode != test.want {
				t.Errorf("release %d, exit code %d, %v; want release 3 and %d", res.ID, res.ExitCode, err, test.want)
			}
		})
	}
}
