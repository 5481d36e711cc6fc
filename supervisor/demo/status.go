package demo

import "strings"

// What the commands print is decoded here anew, as a program outside Baton
// would: a field that is renamed by mistake makes the demo fail.

// Status is what is read of `baton status -o json`.
type Status struct {
	State       string
	PID         int
	Current     int
	Generations []struct {
		ID, Slot, PID int
		State         string
		Message       string // what it says of itself
	}
	Listeners []struct {
		Name       string
		Closed     bool
		Generation int // who gets its new flows
	}
	Slots []struct {
		Slot    int
		Reasons map[string]int
	}
	Drained struct {
		Ended, Cut int // generations, and flows their deadlines cut
		Undeclared int // flows open when their process ended, of which it had said nothing
	}
	// Release is the one under way.
	Release *struct {
		ID         int
		Stage      string
		Generation int
		Weight     float64 // share of new flows the generation gets
	}
	Steering string
}

// Result is what `baton release -o json` prints, and its exit code.
type Result struct {
	ID         int
	Outcome    string
	ExitCode   int `json:"exit_code"`
	Generation int
	Previous   int
	Reason     string
	Stages     []Stage
	// QueuedAtShift counts the connections that waited at the previous
	// generation's listeners when new flows stopped going there.
	QueuedAtShift struct {
		HalfOpen int `json:"half_open"`
		ToAccept int `json:"to_accept"`
	} `json:"queued_at_shift"`
}

// Stage is one stage of a release.
type Stage struct {
	Name  string  `json:"name"`
	MS    float64 `json:"ms"`
	Error string  `json:"error,omitempty"`
}

// Datagrams sums up what came of those, over all slots.
func (s *Status) Datagrams() *DatagramReport {
	r := new(DatagramReport)
	for _, slot := range s.Slots {
		if slot.Reasons["named"] > 0 {
			r.Slots++
		}
		r.Named += slot.Reasons["named"]
		r.Remembered += slot.Reasons["remembered"]
		r.Reset += slot.Reasons["reset"]
		r.Stranger += slot.Reasons["stranger"]
		r.Lost += slot.Reasons["lost"]
	}
	return r
}

// Draining reports whether a generation has been told to stop, by its own word.
func (s *Status) Draining(generation int) bool {
	for _, g := range s.Generations {
		if g.ID == generation {
			return strings.HasPrefix(g.Message, "draining")
		}
	}
	return false
}

// serving is the generation that gets all new flows, 0 while they are shared.
func (s *Status) serving() int {
	switch {
	case s.Release == nil || s.Release.Weight == 0:
		return s.Current
	case s.Release.Weight == 1:
		return s.Release.Generation
	}
	return 0
}

// beside lists the generations that live beside the current one.
func (s *Status) beside() []int {
	var ids []int
	for _, g := range s.Generations {
		if g.ID != s.Current && g.State != "gone" {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// slotOf is the slot of a generation, -1 if there is none.
func (s *Status) slotOf(generation int) int {
	for _, g := range s.Generations {
		if g.ID == generation {
			return g.Slot
		}
	}
	return -1
}

// PIDOf is the process of a generation, 0 if it has none.
func (s *Status) PIDOf(generation int) int {
	for _, g := range s.Generations {
		if g.ID == generation {
			return g.PID
		}
	}
	return 0
}
