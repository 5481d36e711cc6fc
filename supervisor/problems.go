package supervisor

import (
	"fmt"
	"time"
)

// Problem is something that lasts, and that somebody has to see to.
type Problem struct {
	What ProblemKind `json:"what"`
	Says string      `json:"says"` // what is so, and what Baton does about it
	Do   string      `json:"do"`
}

// ProblemKind says what a problem is with.
type ProblemKind string

// The kinds, in the order in which they are told.
const (
	CrashLoop        ProblemKind = "crash"
	StateFile        ProblemKind = "state_file"
	CertificateFiles ProblemKind = "certificates"
	IDKeyFile        ProblemKind = "connection_id_keys"
)

// ProblemKinds are all of them.
var ProblemKinds = []ProblemKind{CrashLoop, StateFile, CertificateFiles, IDKeyFile}

// problems are those there are now. s.mu is held.
func (s *Supervisor) problems() (all []Problem) {
	if p, ok := s.crashProblem(); ok {
		all = append(all, p)
	}
	if s.unsaved != nil {
		all = append(all, Problem{StateFile,
			fmt.Sprintf("the state file cannot be written, so nothing is released: %v", s.unsaved),
			"make room, or mend the directory: it is written again within a second; until then do not end this supervisor"})
	}
	for _, g := range s.generations {
		if err := s.unusable[g]; err != nil {
			all = append(all, Problem{CertificateFiles,
				fmt.Sprintf("certificates stay as they are, for their files cannot be used: %v", err),
				"mend the files: a certificate that has changed is released by itself; until then no release passes, and no supervisor starts"})
		}
	}
	if ids := s.ids.Status(); ids != nil && ids.Problem != "" {
		all = append(all, Problem{IDKeyFile,
			"the keys of connection IDs stay as they were: " + ids.Problem,
			"mend the file: it is in force a second later; until then no release passes, and no supervisor starts"})
	}
	return all
}

// crashed is the generation that served and ended by itself last.
type crashed struct {
	id    uint64
	exit  string
	again time.Time // when what it ran is started again; zero: it is being
}

func (c crashed) String() string {
	return fmt.Sprintf("generation %d, which served, has ended: %s", c.id, c.exit)
}

// noteCrash counts a generation that served and ended by itself, or gave up its sockets. s.mu is held.
func (s *Supervisor) noteCrash(g *generation, exit string) {
	s.drained.Crashed++
	s.lastCrash = crashed{id: g.id, exit: exit}
}

// crashProblem tells of a generation that has ended by itself while nobody has taken
// its place, or who has is too young for it to be trusted. s.mu is held.
func (s *Supervisor) crashProblem() (Problem, bool) {
	g := s.shift.current
	if s.lastCrash.id == 0 || s.crashes == 0 && s.crash == nil || g != nil && time.Since(g.started) > longEnough {
		return Problem{}, false
	}
	says := s.lastCrash.String()
	if s.crashes > 1 {
		says += fmt.Sprintf("; what it runs was started again %d times in a row", s.crashes)
	}
	switch in := time.Until(s.lastCrash.again).Round(100 * time.Millisecond); {
	case g != nil:
		says += fmt.Sprintf("; generation %d runs in its place", g.id)
	case in > 0:
		says += fmt.Sprintf("; nobody serves, clients wait, and it is started again in %v", in)
	default:
		says += "; nobody serves, clients wait, and it is being started again"
	}
	return Problem{CrashLoop, says,
		"its last words are in the log; baton rollback goes back to what ran before it, baton release tries another"}, true
}
