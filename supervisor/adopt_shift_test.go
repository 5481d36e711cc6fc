package supervisor

import (
	"maps"
	"testing"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor/state"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// kernelSays is a steering that an earlier supervisor has told where new flows go.
type kernelSays struct {
	shiftsOnly
	all reuseport.Shift
	own map[string]reuseport.Shift
}

func (k kernelSays) InForce() (reuseport.Shift, map[string]reuseport.Shift) { return k.all, k.own }

// goes is where new flows go, by numbers of generations; 0 is nobody.
type goes struct {
	current, other uint64
	weight         float64
}

func (f shiftInForce) goes() (to goes) {
	to.weight = f.weight
	if f.current != nil {
		to.current = f.current.id
	}
	if f.other != nil {
		to.other = f.other.id
	}
	return to
}

// Where new flows go the kernel says, by slots; who cannot serve any more is left out.
// Each generation has the slot of its number.
func TestShiftIsReadFromTheKernel(t *testing.T) {
	const half = 1 << 15
	word := func(current, other uint8, weight uint16) reuseport.Shift {
		return reuseport.Shift{Current: current, Other: other, Weight: weight, Salt: 7}
	}
	dead := func(g *generation) { g.dead.Store(true) }
	type whom map[uint64]func(*generation)
	for name, tt := range map[string]struct {
		all    reuseport.Shift
		own    map[string]reuseport.Shift // none: nil
		change whom
		want   goes
		wantOf map[string]goes
	}{
		"one has all":                   {word(1, 1, 0), nil, nil, goes{1, 0, 0}, nil},
		"half of a ramp":                {word(1, 2, half), nil, nil, goes{1, 2, 0.5}, nil},
		"a candidate that is held back": {word(1, 2, 0), nil, nil, goes{1, 2, 0}, nil},
		"who had all has ended":         {word(1, 2, half), nil, whom{1: dead}, goes{2, 0, 0}, nil},
		"who had a share has ended":     {word(1, 2, half), nil, whom{2: dead}, goes{1, 0, 0}, nil},
		"who had a share was told":      {word(1, 2, half), nil, whom{2: func(g *generation) { g.told = true }}, goes{1, 0, 0}, nil},
		"who had a share was not ready": {word(1, 2, half), nil, whom{2: func(g *generation) { g.state = Starting }}, goes{1, 0, 0}, nil},
		"nobody is left":                {word(1, 2, half), nil, whom{1: dead, 2: dead}, goes{}, nil},

		"a listener of another": {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 1, 0)}, nil, goes{1, 0, 0}, map[string]goes{"a": {2, 0, 0}}},
		"its ramp":              {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 3, half)}, nil, goes{1, 0, 0}, map[string]goes{"a": {2, 3, 0.5}}},
		"its ramp is over":      {word(1, 1, 0), map[string]reuseport.Shift{"a": word(3, 2, 0)}, nil, goes{1, 0, 0}, map[string]goes{"a": {3, 2, 0}}},
		"its owner has ended":   {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 1, 0)}, whom{2: dead}, goes{1, 0, 0}, nil},
		"its owner, in a ramp":  {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 3, half)}, whom{2: dead}, goes{1, 0, 0}, map[string]goes{"a": {3, 0, 0}}},
		"its candidate":         {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 3, half)}, whom{3: dead}, goes{1, 0, 0}, map[string]goes{"a": {2, 0, 0}}},
		"who had the others":    {word(1, 1, 0), map[string]reuseport.Shift{"a": word(2, 1, 0)}, whom{1: dead}, goes{2, 0, 0}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var all []*generation
			for id := uint64(1); id <= 3; id++ {
				g := left(t, id, Serving, sleeper())
				if change := tt.change[id]; change != nil {
					change(g)
				}
				all = append(all, g)
			}
			s := splitLeft(all...)
			for _, g := range all {
				s.slots[g.slot] = g
			}
			s.steering = kernelSays{shiftsOnly{new(steer.Takeover), true}, tt.all, tt.own}
			s.readShift()
			if got := s.shift.goes(); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if s.shift.current != nil && s.shift.salt == 0 {
				t.Error("without salt the next supervisor would not believe it")
			}
			of := map[string]goes{}
			for name, f := range s.own {
				of[name] = f.goes()
			}
			if !maps.Equal(of, tt.wantOf) {
				t.Errorf("listeners with a shift of their own: %+v, want %+v", of, tt.wantOf)
			}
		})
	}
}

// What a rollback would give back is known as long as everybody lives whom it is about.
func TestLoanIsRead(t *testing.T) {
	one, two := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper())
	for name, tt := range map[string]struct {
		loan *state.Loan
		want bool
	}{
		"there is none":              {nil, false},
		"both live":                  {&state.Loan{By: 2, From: map[string]uint64{"a": 1}}, true},
		"who took it has ended":      {&state.Loan{By: 9, From: map[string]uint64{"a": 1}}, false},
		"who had it has ended":       {&state.Loan{By: 2, From: map[string]uint64{"a": 9}}, false},
		"one of those who had it":    {&state.Loan{By: 2, From: map[string]uint64{"a": 1, "b": 9}}, false},
		"there was nobody before it": {&state.Loan{By: 2, From: map[string]uint64{"a": 0}}, false},
	} {
		s := splitLeft(one, two)
		s.state.Loan = tt.loan
		s.readLoan()
		if got := s.borrowed != nil; got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
		if s.borrowed != nil && (s.borrowed.by != two || s.borrowed.from["a"] != one) {
			t.Errorf("%s: %+v", name, s.borrowed)
		}
	}
}

// Where the generation before cannot take its flows back, the candidate keeps them,
// unless it was on its way out itself; the release goes on under its trace.
func TestInterruptedReleaseWithNobodyToGoBackTo(t *testing.T) {
	for name, tt := range map[string]struct {
		state   State
		told    bool
		outcome Outcome
		serves  bool
	}{
		"it served":     {Serving, false, Inconclusive, true},
		"it drained":    {Draining, false, Failed, false},
		"it was told":   {Serving, true, Failed, false},
		"shift unnoted": {Ready, false, Inconclusive, true},
	} {
		for before, change := range map[string]func(*generation){
			"drains":    func(g *generation) { g.state = Draining },
			"was told":  func(g *generation) { g.told = true },
			"has ended": func(g *generation) { g.dead.Store(true) },
		} {
			t.Run(name+", the one before "+before, func(t *testing.T) {
				previous, candidate := left(t, 1, Serving, sleeper()), left(t, 2, tt.state, sleeper())
				change(previous)
				candidate.told = tt.told
				s := splitLeft(previous, candidate)
				s.shift = shiftInForce{current: candidate, salt: 1}
				s.history = []Result{{ID: 7, TraceID: "before", Evidence: []string{"seen"}}}
				s.undoInterrupted(&state.Release{ID: 7, Candidate: 2, Previous: 1})
				got := s.history[len(s.history)-1]
				if got.Outcome != tt.outcome || got.TraceID != "before" || len(got.Evidence) != 1 || got.Reason == "" || got.ExitCode != tt.outcome.ExitCode() {
					t.Errorf("%+v, want %s", got, tt.outcome)
				}
				if serves := s.shift.current == candidate && candidate.state == Serving; serves != tt.serves {
					t.Errorf("the candidate is %s, the shift %+v", candidate.state, s.shift.goes())
				}
			})
		}
	}
}

// Of a release of some listeners who has the others takes them, should the one before
// have ended.
func TestInterruptedReleaseOfAListenerOfNobody(t *testing.T) {
	rest, before, candidate := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper()), left(t, 3, Serving, sleeper())
	before.dead.Store(true)
	undo := func(all, of *generation) (*Supervisor, Outcome) {
		s := splitLeft(rest, before, candidate)
		s.shift, s.own["a"] = shiftInForce{current: all}, shiftInForce{current: of}
		s.undoInterrupted(&state.Release{ID: 7, Candidate: 3, Previous: 2, Listeners: []string{"a"}})
		return s, s.history[0].Outcome
	}
	s, got := undo(rest, candidate)
	if got != RolledBack {
		t.Errorf("outcome %s", got)
	}
	wantOwnerIDs(t, s, 1, 1)
	candidate.state = Serving
	if s, got = undo(candidate, candidate); got != Inconclusive {
		t.Errorf("with the others, too: outcome %s", got)
	}
	wantOwnerIDs(t, s, 3, 3)
}

// What is written down of listeners that are split is what the next supervisor reads.
func TestSplitIsNoted(t *testing.T) {
	one, two := left(t, 1, Serving, sleeper()), left(t, 2, Serving, sleeper())
	s := splitLeft(one, two)
	s.shift, s.own["a"] = shiftInForce{current: one}, shiftInForce{current: two}
	s.borrowed = &loan{two, map[string]*generation{"a": one, "b": nil}}
	s.noteSplit()
	if st := s.state; st.Current != 1 || !maps.Equal(st.Own, map[string]uint64{"a": 2}) || st.Loan == nil || st.Loan.By != 2 || !maps.Equal(st.Loan.From, map[string]uint64{"a": 1, "b": 0}) {
		t.Errorf("%+v", st)
	}
	if got := s.byID(map[string]uint64{"a": 2, "b": 9}); got["a"] != two || got["b"] != nil || len(got) != 2 {
		t.Errorf("%+v", got)
	}
	s.shift, s.own, s.borrowed = shiftInForce{}, split{}, nil
	s.noteSplit()
	if st := s.state; st.Current != 0 || st.Own != nil || st.Loan != nil {
		t.Errorf("nobody serves: %+v", st)
	}
}
