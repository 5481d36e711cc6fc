package main

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/baton-mesh/baton/supervisor"
)

// oneLine is a release in short.
func oneLine(r supervisor.Result) string {
	line := fmt.Sprintf("%d: %s", r.ID, words(r.Outcome))
	if r.Reason != "" {
		line += ": " + firstLine(r.Reason)
	}
	return line
}

// firstLine is text for a table: of a file with ten mistakes, the first.
func firstLine(text string) string {
	first, rest, more := strings.Cut(text, "\n")
	if more {
		first += fmt.Sprintf(" (and %d more: baton releases ID)", strings.Count(rest, "\n")+1)
	}
	return first
}

func words(o supervisor.Outcome) string { return strings.ReplaceAll(string(o), "_", " ") }

// printResult prints all that is known of a release, and what to do now, if anything.
func printResult(r supervisor.Result, do string) {
	fmt.Fprintf(stdout, "release %d: %s", r.ID, words(r.Outcome))
	if r.Generation != 0 {
		fmt.Fprintf(stdout, ", generation %d", r.Generation)
		if r.Previous != 0 {
			fmt.Fprintf(stdout, " after %d", r.Previous)
		}
	}
	if len(r.Listeners) > 0 {
		fmt.Fprintf(stdout, ", for %s alone", strings.Join(r.Listeners, ", "))
	}
	fmt.Fprintln(stdout)
	for _, line := range [][2]string{{"ran", ran(r)}, {"reason", r.Reason}, {"so", consequence(r)}, {"do", do}} {
		if line[1] != "" {
			fmt.Fprintf(stdout, "  %s: %s\n", line[0], line[1])
		}
	}
	for _, st := range r.Stages {
		fmt.Fprintf(stdout, "  %-14s %9.1f ms  %s\n", st.Name, st.Milliseconds, st.Error)
	}
	for _, e := range r.Evidence {
		fmt.Fprintln(stdout, "  evidence:", e)
	}
	for _, e := range r.Ended {
		fmt.Fprintln(stdout, "  ended:", e)
	}
	if v := r.Verdict; v != nil {
		fmt.Fprintf(stdout, "  verdict: %s, %.0f ms after the shift; flows harmed: %d\n", v.Judgement, v.Milliseconds, v.Harmed)
		for _, f := range v.Findings {
			fmt.Fprintf(stdout, "  %-14s %-9s %s\n", f.Gate, f.State, f.Words)
		}
	}
}

// ran is what the candidate was.
func ran(r supervisor.Result) string {
	if r.Binary == "" {
		return ""
	}
	return r.Binary + " with " + r.Config
}

// consequence is what Baton did about a release that did not pass.
func consequence(r supervisor.Result) string {
	switch r.Outcome {
	case supervisor.Refused:
		if r.Previous == 0 {
			return "nothing was started"
		}
		return fmt.Sprintf("no new flow moved: generation %d served on", r.Previous)
	case supervisor.RolledBack:
		return fmt.Sprintf("all new flows went back to generation %d, which had not stopped; what generation %d had accepted it could finish, if it lived", r.Previous, r.Generation)
	case supervisor.Inconclusive:
		return fmt.Sprintf("generation %d has the new flows, and generation %d stays in reserve, should it be needed", r.Generation, r.Previous)
	case supervisor.Failed:
		return "there was nobody to go back to: clients wait until a generation serves"
	case supervisor.RollbackFailed:
		return fmt.Sprintf("generation %d could not take the new flows back: what it ran is started again", r.Previous)
	case supervisor.Passed, supervisor.Superseded:
	}
	return ""
}

// advice is what to do now about a release that has just ended.
func advice(r supervisor.Result) string {
	switch r.Outcome {
	case supervisor.Refused:
		return "mend what the reason names, and release again; what the candidate itself has said is in the supervisor's log"
	case supervisor.RolledBack:
		return fmt.Sprintf("find out why before you release it again: the gates below that are violated, the log, baton releases %d --trace", r.ID)
	case supervisor.Inconclusive:
		return "baton rollback to go back at once, or baton release to go on: when it passes, both end"
	case supervisor.Failed, supervisor.RollbackFailed:
		return "baton status, to see whether somebody serves by now; then the log"
	case supervisor.Passed, supervisor.Superseded:
	}
	return ""
}

func printReleases(all []supervisor.Result) {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RELEASE\tSTARTED\tCAUSE\tOUTCOME\tGENERATION\tPREVIOUS\tREASON")
	for _, r := range all {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Started.Format(time.DateTime), r.Cause, r.Outcome, orDash(r.Generation), orDash(r.Previous), firstLine(r.Reason))
	}
	w.Flush()
}

// orDash is a generation's number, if there is one.
func orDash(generation uint64) string {
	if generation == 0 {
		return "-"
	}
	return strconv.FormatUint(generation, 10)
}
