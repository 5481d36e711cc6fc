package supervisor

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/baton-mesh/baton/supervisor/state"
)

// A supervisor whose state file was removed does not give a new generation the number of
// one that lives, and says that there is one.
func TestUnknownGenerationsArePassed(t *testing.T) {
	left := map[string]int{"1/socket/web/0": 10, "4/ledger": 11, "keys": 12, keptPrevious + "binary": 13, keptTable + "places": 14}
	for record, want := range map[uint64]uint64{1: 5, 4: 5, 5: 5, 9: 9} {
		var log bytes.Buffer
		s := &Supervisor{log: slog.New(slog.NewTextHandler(&log, nil)), state: state.Record{NextGeneration: record}}
		s.passUnknown(left)
		if s.state.NextGeneration != want {
			t.Errorf("after a record with %d next: %d, want %d", record, s.state.NextGeneration, want)
		}
		if said := strings.Contains(log.String(), "the state file does not know"); said != (record < 5) {
			t.Errorf("a record with %d next: %q", record, log.String())
		}
	}
}
