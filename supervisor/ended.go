package supervisor

import (
	"fmt"
	"slices"

	"github.com/baton-mesh/baton/bpf/flows"
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
}

func (e Ending) String() string {
	return fmt.Sprintf("generation %d ended, %s: %d flows cut by the deadline, %d closed idle, %d open and undeclared; %d requests in flight, %d handshakes half open",
		e.Generation, e.Exit, e.Cut, e.IdleClosed, e.Undeclared, e.InFlight, e.HalfOpenLeft)
}

// endingOf sums up the end of a generation by its last accounts. s.mu is held.
func (s *Supervisor) endingOf(g *generation, last flows.Counts) Ending {
	e := Ending{Generation: g.id, Exit: g.exit, Cut: g.cut, IdleClosed: g.idleClosed, HalfOpenLeft: g.halfOpenLeft}
	open := last[flows.OpenAtExit]
	e.Undeclared = open - min(open, uint64(g.cut+g.idleClosed)) + g.book.OpenDatagrams()
	if r, err := g.book.Reading(); err == nil && r.Damage == "" {
		e.InFlight = (&r).Total().InFlight
	}
	return e
}

// noteEnding writes the end of a generation into the release that it belongs to: the
// one that runs, if it is of it, else the one whose trace it is in. s.mu is held.
func (s *Supervisor) noteEnding(g *generation, e Ending) {
	g.ended = &e
	if r := s.running; r != nil && r.candidate == g {
		r.endings = append(r.endings, e)
		return
	}
	if !g.endsIn.IsValid() {
		return
	}
	id := g.endsIn.TraceID().String()
	if r := s.running; r != nil && r.traceID() == id {
		r.endings = append(r.endings, e)
		return
	}
	if i := slices.IndexFunc(s.history, func(r Result) bool { return r.TraceID == id }); i >= 0 {
		s.history[i].Ended = append(slices.Clone(s.history[i].Ended), e)
		s.record(s.history[i])
	}
}
