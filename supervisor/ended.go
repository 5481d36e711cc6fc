package supervisor

import (
	"fmt"
	"slices"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/account"
)

// Ending is how a generation ended that a release had replaced or taken back, and
// what became of the flows that it still had.
type Ending struct {
	Generation uint64 `json:"generation"`
	Exit       string `json:"exit"`
	// Cut and IdleClosed are flows that the drain's deadline ended, as the generation
	// reported them, HalfOpenLeft handshakes that went over by migration.
	Cut          int `json:"cut"`
	IdleClosed   int `json:"idle_closed"`
	HalfOpenLeft int `json:"half_open_left"`
	// Undeclared are flows that were open when its process ended, beyond those: as the
	// kernel counted them, and of QUIC and UDP as its ledger says.
	Undeclared uint64 `json:"undeclared"`
	// InFlight are requests and streams that had begun and not ended; 0 of one without
	// a ledger.
	InFlight uint64 `json:"in_flight"`
	// Harmed are, of a candidate that was taken back, all flows since the shift whose
	// client can have noticed. Those that waited for an answer at the verdict are among them.
	Harmed uint64 `json:"harmed,omitempty"`
}

func (e Ending) String() string {
	words := fmt.Sprintf("generation %d ended, %s: %d flows cut by the deadline, %d closed idle, %d open and undeclared; %d requests in flight, %d handshakes half open",
		e.Generation, e.Exit, e.Cut, e.IdleClosed, e.Undeclared, e.InFlight, e.HalfOpenLeft)
	if e.Harmed > 0 {
		words += fmt.Sprintf("; %d flows harmed in all", e.Harmed)
	}
	return words
}

// endingOf sums up the end of a generation by its last accounts. s.mu is held.
func (s *Supervisor) endingOf(g *generation, last flows.Counts) Ending {
	e := Ending{Generation: g.id, Exit: g.exit, Cut: g.cut, IdleClosed: g.idleClosed, HalfOpenLeft: g.halfOpenLeft}
	open := last[flows.OpenAtExit]
	e.Undeclared = open - min(open, uint64(g.cut+g.idleClosed)) + g.book.OpenDatagrams()
	if r, err := g.book.Reading(); err == nil && r.Damage == "" {
		e.InFlight = (&r).Total().InFlight
	}
	harmed := g.harmed()
	e.Harmed = harmed - min(harmed, g.harmedBefore)
	return e
}

// harmed are the flows of a generation whose client can have noticed, up to now.
func (g *generation) harmed() (n uint64) {
	counts, _ := g.flows.Read()
	own := account.Sum(counts)
	if r, err := g.book.Reading(); err == nil && r.Damage == "" {
		n = (&r).Total().Flows.Failed
	}
	return max(n, own[flows.Failed]) + own[flows.ResetQueued]
}

// noteEnding writes the end of a generation into the release that it belongs to: the
// one that runs, if it is of it, else the one whose trace it is in. s.mu is held.
func (s *Supervisor) noteEnding(g *generation, e Ending) {
	g.ended = &e
	id := ""
	if g.endsIn.IsValid() {
		id = g.endsIn.TraceID().String()
	}
	note := func(of *Result, all []Ending) []Ending {
		if of.Generation != g.id {
			e.Harmed = 0 // of its whole life, most of it before this release
		}
		return append(slices.Clone(all), e)
	}
	if r := s.running; r != nil && (r.candidate == g || id != "" && r.traceID() == id) {
		r.endings = note(&r.result, r.endings)
		return
	}
	if i := slices.IndexFunc(s.history, func(r Result) bool { return r.TraceID == id }); i >= 0 && id != "" {
		of := &s.history[i]
		of.Ended = note(of, of.Ended)
		s.record(*of)
	}
}
