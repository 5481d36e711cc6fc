package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a demo came to.
type Report struct {
	Passed   bool            `json:"passed"`
	Seconds  float64         `json:"seconds"`
	Steering string          `json:"steering"`
	Clients  []KindReport    `json:"clients"`
	Releases []ReleaseReport `json:"releases"`
	// Killed is about the process that was killed on purpose.
	Killed *KilledReport `json:"killed,omitempty"`
	// Datagrams is what the kernel counted of those, nil where there were none.
	Datagrams *DatagramReport `json:"datagrams,omitempty"`
	// Problems says in words why the demo did not pass.
	Problems []string `json:"problems"`
}

// KindReport sums up the operations of one kind of client.
type KindReport struct {
	Kind   Kind `json:"kind"`
	OK     int  `json:"ok"`
	Failed int  `json:"failed"` // other than Killed
	Killed int  `json:"killed"` // failed, on a connection of the process that was killed
	Cut    int  `json:"cut"`
	// AtShift is how many operations were under way at a shift, at the shift with the fewest.
	AtShift int `json:"at_shift"`
	// Shifts is how many shifts found an operation under way.
	Shifts int `json:"shifts"`
	// Before is about operations that no release touched, During about the others.
	Before Latency `json:"before"`
	During Latency `json:"during"`
}

// Latency holds quantiles of [Op.Wait], in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
}

// ReleaseReport is one release, or several asked for at once.
type ReleaseReport struct {
	Name string `json:"name"`
	// Outcomes counts the requests by outcome and exit code.
	Outcomes []Outcome `json:"outcomes"`
	Expected bool      `json:"expected"`
	// Stages and Reason are those of the last request that ran.
	Stages []Stage `json:"stages"`
	Reason string  `json:"reason,omitempty"`
}

// Outcome is how a number of requests ended.
type Outcome struct {
	Outcome  string `json:"outcome"`
	ExitCode int    `json:"exit_code"`
	Count    int    `json:"count"`
}

// KilledReport is what the process owned that was killed, and what came of it.
type KilledReport struct {
	PID    int `json:"pid"`
	Flows  int `json:"flows"`  // connections of clients it had accepted
	Failed int `json:"failed"` // operations that failed on them
}

// DatagramReport counts datagrams by why the kernel gave them to a generation.
type DatagramReport struct {
	// Slots is how many slots got any by connection ID.
	Slots      int `json:"slots"`
	Named      int `json:"named"`      // by the connection ID
	Remembered int `json:"remembered"` // to where the flow, or the first flight, had begun
	Reset      int `json:"reset"`      // of a generation that had ended, to one that says so
	Stranger   int `json:"stranger"`   // to nobody
	Lost       int `json:"lost"`       // for want of any choice
}

// Summarize sums up operations by kind, in the order of [Kinds] and [DatagramKinds]. releases are
// the times at which a release was under way, shifts those of the shifts, and
// death explains failures; it may be nil.
func Summarize(ops []Op, releases, shifts []Window, death *Death) []KindReport {
	byKind := make(map[Kind][]Op)
	for _, op := range ops {
		byKind[op.Kind] = append(byKind[op.Kind], op)
	}
	var reports []KindReport
	for _, kind := range slices.Concat(Kinds, DatagramKinds) {
		if ops := byKind[kind]; len(ops) > 0 {
			reports = append(reports, summarizeKind(kind, ops, releases, shifts, death))
		}
	}
	return reports
}

func summarizeKind(kind Kind, ops []Op, releases, shifts []Window, death *Death) KindReport {
	r := KindReport{Kind: kind}
	var before, during []time.Duration
	for _, op := range ops {
		switch {
		case death.Explains(op):
			r.Killed++
		case op.Failed():
			r.Failed++
		case op.Cut():
			r.Cut++
		default:
			r.OK++
			if slices.ContainsFunc(releases, op.Overlaps) {
				during = append(during, op.Wait)
			} else {
				before = append(before, op.Wait)
			}
		}
	}
	r.Before, r.During = latency(before), latency(during)
	for i, s := range shifts {
		n := 0
		for _, op := range ops {
			if op.Spans(s) {
				n++
			}
		}
		if i == 0 || n < r.AtShift {
			r.AtShift = n
		}
		if n > 0 {
			r.Shifts++
		}
	}
	return r
}

func latency(waits []time.Duration) Latency {
	if len(waits) == 0 {
		return Latency{}
	}
	slices.Sort(waits)
	at := func(q float64) float64 {
		return float64(waits[int(q*float64(len(waits)-1)+0.5)].Microseconds()) / 1000
	}
	return Latency{at(0.50), at(0.99)}
}

// WriteTo writes the report for people.
func (r *Report) WriteTo(out io.Writer) (int64, error) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "client\tok\tfailed\tkilled\tcut\tp50 before\tp99 before\tp50 during\tp99 during\tat a shift\t\n")
	for _, k := range r.Clients {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%.1f ms\t%.1f ms\t%.1f ms\t%.1f ms\t≥ %d\t\n", k.Kind, k.OK, k.Failed, k.Killed, k.Cut,
			k.Before.P50, k.Before.P99, k.During.P50, k.During.P99, k.AtShift)
	}
	t.Flush()

	stages := []string{"validate", "start", "probe", "shift", "verify"}
	b.WriteString("\n")
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "release\t%s\toutcome (exit code)\t\n", strings.Join(stages, "\t"))
	for _, rel := range r.Releases {
		fmt.Fprintf(t, "%s\t", rel.Name)
		for _, name := range stages {
			cell := "–"
			for _, s := range rel.Stages {
				if s.Name == name {
					cell = fmt.Sprintf("%.1f ms", s.MS)
				}
			}
			fmt.Fprintf(t, "%s\t", cell)
		}
		fmt.Fprintf(t, "%s\t\n", rel.outcomes())
	}
	t.Flush()

	if k := r.Killed; k != nil {
		fmt.Fprintf(&b, "\nProcess %d was killed right after its shift. It owned %d connections of TCP; with what it had by UDP, %d operations failed on its flows.\n",
			k.PID, k.Flows, k.Failed)
	}
	if d := r.Datagrams; d != nil {
		fmt.Fprintf(&b, "\nDatagrams: %d by connection ID to %d slots, %d to where their flow had begun, %d told of a generation that had ended, %d to nobody, %d lost.\n",
			d.Named, d.Slots, d.Remembered, d.Reset, d.Stranger, d.Lost)
	}
	b.WriteString("\n")
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM: %s\n", p)
	}
	verdict := "PASSED: nobody else noticed anything"
	if !r.Passed {
		verdict = "FAILED"
	}
	fmt.Fprintf(&b, "%s (%.1f s, steering %s)\n", verdict, r.Seconds, r.Steering)
	n, err := io.WriteString(out, b.String())
	return int64(n), err
}

func (r ReleaseReport) outcomes() string {
	var all []string
	for _, o := range r.Outcomes {
		text := fmt.Sprintf("%s (%d)", o.Outcome, o.ExitCode)
		if o.Count > 1 {
			text = fmt.Sprintf("%d × %s", o.Count, text)
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}
