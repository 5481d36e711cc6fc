package supervisor

import (
	"log/slog"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/idkeys"
	"github.com/baton-mesh/baton/supervisor/judge"
	"github.com/baton-mesh/baton/supervisor/steer"
	"github.com/baton-mesh/baton/supervisor/store"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// Request asks for a release.
type Request struct {
	// ConfigPath is the file to run with. Empty means the file that the
	// supervisor was started with, as it is now.
	ConfigPath string `json:"config,omitempty"`
	// Binary replaces the first word of proxy.command.
	Binary string `json:"binary,omitempty"`
	// Ramp replaces release.ramp.
	Ramp []config.Percent `json:"ramp,omitempty"`
	// Listeners are the names of those whose new flows the candidate gets; the
	// others stay where they are. None means all.
	Listeners []string `json:"listeners,omitempty"`
	// NoVerify passes the release without watching the candidate.
	NoVerify bool `json:"no_verify,omitempty"`
}

// Outcome is how a release ended.
type Outcome string

// The outcomes, each with its exit code.
const (
	Passed         Outcome = "passed"          // 0
	Failed         Outcome = "failed"          // 1: there was nothing to go back to
	RolledBack     Outcome = "rolled_back"     // 3: failed after flows had moved; they move no more
	Inconclusive   Outcome = "inconclusive"    // 4: both generations stay as they are
	Refused        Outcome = "refused"         // 5: before any flow moved
	Superseded     Outcome = "superseded"      // 5: a later request took its place
	RollbackFailed Outcome = "rollback_failed" // 6: nobody was left to go back to
)

// AllOutcomes are those that a release can have.
var AllOutcomes = []Outcome{Passed, Failed, RolledBack, Inconclusive, Refused, Superseded, RollbackFailed}

// ExitCode is what the command that asked for the release exits with.
func (o Outcome) ExitCode() int {
	switch o {
	case Passed:
		return 0
	case RolledBack:
		return 3
	case Inconclusive:
		return 4
	case Refused, Superseded:
		return 5
	case RollbackFailed:
		return 6
	}
	return 1
}

// level is how loud the log is about it.
func (o Outcome) level() slog.Level {
	switch o {
	case Passed:
		return slog.LevelInfo
	case Failed, RollbackFailed:
		return slog.LevelError
	case RolledBack, Inconclusive, Refused, Superseded:
	}
	return slog.LevelWarn
}

// Result is a release that has ended.
type Result struct {
	ID       uint64    `json:"id"`
	Cause    string    `json:"cause"` // who asked: start, command, sighup, rollback, crash, certificates
	Outcome  Outcome   `json:"outcome"`
	ExitCode int       `json:"exit_code"`
	Started  time.Time `json:"started"`
	// Generation is the candidate's number; 0 if none was made.
	Generation uint64 `json:"generation,omitempty"`
	// Previous served before; 0 if none did.
	Previous uint64 `json:"previous,omitempty"`
	// Listeners are those whose new flows it moved; none: all.
	Listeners []string `json:"listeners,omitempty"`
	// Config and Binary are what the candidate was made of; empty if that was not found.
	Config string        `json:"config,omitempty"`
	Binary string        `json:"binary,omitempty"`
	Reason string        `json:"reason,omitempty"`
	Stages []StageResult `json:"stages"`
	// QueuedAtShift is what waited at the previous generation's listeners when
	// new flows stopped going there.
	QueuedAtShift account.QueueLengths `json:"queued_at_shift"`
	// Evidence is what else was seen, in words and numbers.
	Evidence []string `json:"evidence,omitempty"`
	// Verdict is what the gates found; nil for a release that was not watched.
	Verdict *judge.Verdict `json:"verdict,omitempty"`
	TraceID string         `json:"trace_id,omitempty"`
	// Ended are the generations that it replaced or took back and that have ended,
	// most of them after the verdict.
	Ended []Ending `json:"ended,omitempty"`
}

// StageResult is one stage of a release, or its undoing.
type StageResult struct {
	Name         string  `json:"name"`
	Milliseconds float64 `json:"ms"`
	Error        string  `json:"error,omitempty"`
}

// Status is the supervisor at one moment.
type Status struct {
	State       string             `json:"state"` // starting, serving, waiting (no generation lives), stopping
	Version     string             `json:"version"`
	PID         int                `json:"pid"`
	Node        string             `json:"node"`
	ServerID    uint32             `json:"server_id"`
	Steering    string             `json:"steering"`                  // bpf or takeover; none where a comparison asks for it
	Because     string             `json:"steering_reason,omitempty"` // why this steering; empty: it is the best there is
	Unsaved     string             `json:"unsaved,omitempty"`         // why the next supervisor would not find what is so
	Problems    []Problem          `json:"problems,omitempty"`        // what somebody has to see to
	Current     uint64             `json:"current,omitempty"`
	Generations []GenerationStatus `json:"generations"`
	Release     *ReleaseStatus     `json:"release,omitempty"` // the one that runs
	Waiting     uint64             `json:"waiting,omitempty"` // the id of the one that waits
	Last        *Result            `json:"last,omitempty"`
	Listeners   []ListenerStatus   `json:"listeners"`
	Slots       []steer.SlotRuns   `json:"slots"`
	Drained     Drained            `json:"drained"`
	Guard       GuardStatus        `json:"guard"`
	TCPOption   map[string]uint64  `json:"tcp_option,omitempty"` // events of the option with the node's number; none: it is off, or nothing came yet
	// ConnectionIDs are missing where no key has ever been known.
	ConnectionIDs *idkeys.Status `json:"connection_ids,omitempty"`
	Spans         SpanStatus     `json:"spans"`
	// Namespace counts queues that ran over and connections that moved, of all sockets of
	// the network namespace.
	Namespace map[string]uint64 `json:"namespace,omitempty"`
}

// SpanStatus is what became of spans since the supervisor started.
type SpanStatus struct {
	Export   trace.Counts       `json:"export"`
	Store    store.Counts       `json:"store"`
	Received trace.IntakeCounts `json:"received"`
}

// GuardStatus is what the guard on generations' sockets has refused.
type GuardStatus struct {
	Active  bool           `json:"active"` // false: this machine has none to give
	Refused []SlotRefusals `json:"refused,omitempty"`
}

// SlotRefusals are socket options that generations in one slot tried to change.
type SlotRefusals struct {
	Slot    int               `json:"slot"`
	Options map[string]uint64 `json:"options"`
}

// Drained sums what generations left when they ended, since the supervisor
// started.
type Drained struct {
	Ended        uint64 `json:"ended"`   // generations
	Crashed      uint64 `json:"crashed"` // generations that served, and ended by themselves or gave up their sockets
	Cut          uint64 `json:"cut"`     // flows in the middle of something, by the deadline
	IdleClosed   uint64 `json:"idle_closed"`
	HalfOpenLeft uint64 `json:"half_open_left"`
	// Undeclared are flows that were open when a generation's process ended and
	// that it had not reported as cut or idle.
	Undeclared uint64 `json:"undeclared"`
}

// GenerationStatus is one generation at one moment.
type GenerationStatus struct {
	ID       uint64    `json:"id"`
	Slot     int       `json:"slot"` // -1 for one left by an earlier supervisor
	PID      int       `json:"pid"`
	State    State     `json:"state"`
	Binary   string    `json:"binary"`
	Config   string    `json:"config"`
	Started  time.Time `json:"started"`
	Deadline time.Time `json:"deadline,omitzero"` // of its drain
	Message  string    `json:"message,omitempty"` // its own STATUS=
	// Cut and IdleClosed are flows the deadline ended, as the generation
	// reported them: in the middle of something, and idle.
	Cut        int `json:"cut"`
	IdleClosed int `json:"idle_closed"`
	// HalfOpenLeft is how many handshakes were unfinished when the wait for
	// them was over, and went over by kernel migration.
	HalfOpenLeft int    `json:"half_open_left"`
	Exit         string `json:"exit,omitempty"`
	// Reserve says that it gets no new flows and stays, should the current generation,
	// on which there was no verdict, not be good: a rollback goes back to it at once.
	Reserve bool `json:"reserve,omitempty"`
	// Listeners are those whose new flows it has, where they are split among
	// generations; none: it has all or nothing.
	Listeners []string `json:"listeners,omitempty"`
	// Ledger is the generation's own account; nil if it keeps none.
	Ledger *account.LedgerStatus `json:"ledger,omitempty"`
	// OpenFlows are established and not over. Flows counts, since the generation
	// began, by fact, as the kernel saw it; what is zero is left out.
	OpenFlows uint64            `json:"open_flows"`
	Flows     map[string]uint64 `json:"flows,omitempty"`
	// Queues are its listening sockets', by listener, at those at which anything waits, was
	// dropped or came from elsewhere.
	Queues map[string]account.QueueStatus `json:"queues,omitempty"`
	// Datagrams are its sockets of UDP, by listener, at those at which any wait or were dropped.
	Datagrams map[string]account.DatagramQueue `json:"datagrams,omitempty"`
}

// ReleaseStatus is the release that runs.
type ReleaseStatus struct {
	ID         uint64   `json:"id"`
	Stage      string   `json:"stage"`
	Generation uint64   `json:"generation,omitempty"`
	Listeners  []string `json:"listeners,omitempty"` // it is of these alone; none: of all
	Weight     float64  `json:"weight"`              // the candidate's share of new flows, 0 to 1
	Paused     bool     `json:"paused,omitempty"`    // its share does not grow before it is resumed
}

// ListenerStatus is one listener and where its flows went since it was made.
type ListenerStatus struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
	// Closed says that new clients are refused: it is being added or removed.
	Closed bool `json:"closed,omitempty"`
	// Generation is who gets its new flows, or all but a candidate's share; 0: nobody.
	Generation uint64 `json:"generation,omitempty"`
	// Runs counts how often the steering program chose, by reason. A flow can
	// take more than one run.
	Runs map[string]uint64 `json:"runs"`
	// Flows counts flows of all generations by fact, as the kernel saw it.
	Flows map[string]uint64 `json:"flows,omitempty"`
	// Dropped counts segments that its sockets let fall, of all generations: see [account.QueueStatus].
	// Of UDP they are datagrams.
	Dropped uint64 `json:"dropped,omitempty"`
	// SinkDropped is what the sockets let fall at which clients wait while nobody serves; of
	// UDP every datagram that was nobody's.
	SinkDropped uint64 `json:"sink_dropped,omitempty"`
}
