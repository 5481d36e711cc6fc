package supervisor

import (
	"fmt"
	"strings"
)

// Judgement is what the gates say of a candidate.
type Judgement string

// The judgements. Inconclusive is never a pass: something that should have been
// seen was not.
const (
	JudgedPass         Judgement = "pass"
	JudgedFail         Judgement = "fail"
	JudgedInconclusive Judgement = "inconclusive"
)

// FindingState is what one gate found.
type FindingState string

// The states of a finding.
const (
	Held     FindingState = "held"     // the fact is as it must be
	Violated FindingState = "violated" // it is not: the release is shifted back
	Unclear  FindingState = "unclear"  // it could not be seen: the release is inconclusive
	Unjudged FindingState = "unjudged" // not asked here, and the words say why: no reason against a pass
)

// Finding is what one gate found, in words and numbers.
type Finding struct {
	Gate  string       `json:"gate"`
	State FindingState `json:"state"`
	Words string       `json:"words"`
}

// Verdict is what a release was found to be while it was watched.
type Verdict struct {
	Judgement Judgement `json:"judgement"`
	Findings  []Finding `json:"findings"`
	// Flows counts what the candidate got from the shift to the verdict, by fact;
	// what is zero is left out.
	Flows map[string]uint64 `json:"flows,omitempty"`
	// Harmed are flows of the candidate whose client can have noticed: never
	// answered, reset, or open when the candidate ended.
	Harmed uint64 `json:"harmed"`
	// Milliseconds is the time from the shift to the verdict.
	Milliseconds float64 `json:"ms"`
}

// judge makes a judgement of findings: the worst of them.
func judge(findings []Finding) Judgement {
	j := JudgedPass
	for _, f := range findings {
		switch f.State {
		case Violated:
			return JudgedFail
		case Unclear:
			j = JudgedInconclusive
		}
	}
	return j
}

// reasons are the words of the findings in one state.
func reasons(findings []Finding, state FindingState) string {
	var all []string
	for _, f := range findings {
		if f.State == state {
			all = append(all, fmt.Sprintf("%s: %s", f.Gate, f.Words))
		}
	}
	return strings.Join(all, "; ")
}

func held(format string, a ...any) Finding {
	return Finding{State: Held, Words: fmt.Sprintf(format, a...)}
}

func violated(format string, a ...any) Finding {
	return Finding{State: Violated, Words: fmt.Sprintf(format, a...)}
}

func unclear(format string, a ...any) Finding {
	return Finding{State: Unclear, Words: fmt.Sprintf(format, a...)}
}

func unjudged(format string, a ...any) Finding {
	return Finding{State: Unjudged, Words: fmt.Sprintf(format, a...)}
}
