package judge

import (
	"fmt"
	"strings"
	"time"

	"github.com/baton-mesh/baton/bpf/flows"
	"github.com/baton-mesh/baton/supervisor/account"
)

// Judgement is what the gates say of a candidate.
type Judgement string

// The judgements. Inconclusive is never a pass: something that should have been
// seen was not.
const (
	Pass         Judgement = "pass"
	Fail         Judgement = "fail"
	Inconclusive Judgement = "inconclusive"
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

// Verdict is what the findings amount to.
func (c *Case) Verdict(findings []Finding) *Verdict {
	v := &Verdict{Judgement: Judge(findings), Findings: findings, Milliseconds: float64(time.Since(c.begun).Microseconds()) / 1000}
	own, then := c.own(c.now()), c.own(c.first())
	v.Harmed = less(own.Moved.bad(), then.Moved.bad())
	if c.counted {
		got, before := own.Flows, then.Flows
		for f := range got {
			got[f] = less(got[f], before[f])
		}
		v.Flows, v.Harmed = account.Facts(got), max(v.Harmed, got[flows.Failed])+got[flows.ResetQueued]
	}
	return v
}

// Judge makes a judgement of findings: the worst of them.
func Judge(findings []Finding) Judgement {
	j := Pass
	for _, f := range findings {
		switch f.State {
		case Violated:
			return Fail
		case Unclear:
			j = Inconclusive
		}
	}
	return j
}

// Reasons are the words of the findings in one state.
func Reasons(findings []Finding, state FindingState) string {
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
