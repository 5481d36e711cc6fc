package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

func newStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the supervisor, its listeners and generations", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := status(cmd)
			if err != nil {
				return err
			}
			return output(cmd, st, func() { printStatus(st) })
		},
	}
}

func newGenerationsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "generations", Short: "List the living generations", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := status(cmd)
			if err != nil {
				return err
			}
			return output(cmd, st.Generations, func() { printGenerations(st.Generations) })
		},
	}
}

func status(cmd *cobra.Command) (supervisor.Status, error) {
	socket, _ := cmd.Flags().GetString("socket")
	st, err := admin.Dial(socket).Status(cmd.Context())
	if err != nil {
		return st, exitError{exitFailed, err}
	}
	return st, nil
}

func printStatus(st supervisor.Status) {
	printHead(stdout, st)
	fmt.Fprintln(stdout)
	printGenerations(st.Generations)
	fmt.Fprintln(stdout)
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "LISTENER\tADDRESS\tPROTOCOL\tGENERATION\tSINK\tLOST\tMIGRATED")
	for _, l := range st.Listeners {
		protocol := l.Protocol
		if l.Closed {
			protocol += " (closed)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\n", l.Name, l.Address, protocol, orDash(l.Generation), l.Runs["sink"], l.Runs["lost"], l.Runs["migrated"])
	}
	w.Flush()
}

// printHead is the node in a few lines: what runs, what is wrong, what is going on.
func printHead(to io.Writer, st supervisor.Status) {
	who := "no generation serves"
	if st.Current != 0 {
		who = fmt.Sprintf("generation %d", st.Current)
	}
	fmt.Fprintf(to, "%s: %s, %s, steering %s, supervisor pid %d, version %s\n", st.Node, st.State, who, st.Steering, st.PID, st.Version)
	if st.Because != "" {
		fmt.Fprintf(to, "steering is %s because %s\n", st.Steering, st.Because)
	}
	for _, p := range st.Problems {
		fmt.Fprintf(to, "problem: %s\n       → %s\n", p.Says, p.Do)
	}
	if ids := st.ConnectionIDs; ids != nil {
		printConnectionIDs(to, ids)
	}
	if r := st.Release; r != nil {
		printRunning(to, *r)
	}
	if st.Waiting != 0 {
		fmt.Fprintf(to, "release %d waits\n", st.Waiting)
	}
	if r := st.Last; r != nil {
		fmt.Fprintln(to, "last release "+oneLine(*r))
	}
}

func printConnectionIDs(to io.Writer, ids *idkeys.Status) {
	how := "readable"
	if ids.Encode != 0 {
		how = fmt.Sprintf("written under config %d", ids.Encode)
	}
	if len(ids.Read) > 0 {
		how += ", read by keys " + joined(ids.Read)
	}
	for _, r := range ids.Retiring {
		how += fmt.Sprintf("; keeps %d for generations %s", r.Config, joined(r.Generations))
	}
	fmt.Fprintln(to, "connection IDs: "+how)
}

func printKeyProblem(ids *idkeys.Status) {
	if ids.Problem != "" {
		fmt.Fprintf(stdout, "the keys of connection IDs stay as they were: %s\n", ids.Problem)
	}
}

func joined[N int | uint64](numbers []N) string {
	text := make([]string, len(numbers))
	for i, n := range numbers {
		text[i] = fmt.Sprint(n)
	}
	return strings.Join(text, ", ")
}

func printGenerations(all []supervisor.GenerationStatus) {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "GENERATION\tSTATE\tSLOT\tPID\tAGE\tDRAIN ENDS\tREQUESTS\tERRORS\tIN FLIGHT\tP99\tBINARY\tCONFIG\tSAYS")
	for _, g := range all {
		fmt.Fprintf(w, "%d\t%s\t%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", g.ID, stateOf(g), g.Slot, g.PID, ageOf(g), endOf(g), ledgerOf(g.Ledger), g.Binary, g.Config, g.Message)
	}
	w.Flush()
}

// stateOf is where a generation stands, and the listeners that it has, should they be split.
func stateOf(g supervisor.GenerationStatus) string {
	state := string(g.State)
	if g.Reserve {
		state = "in reserve"
	}
	if len(g.Listeners) > 0 {
		state += " " + strings.Join(g.Listeners, ",")
	}
	return state
}

func ageOf(g supervisor.GenerationStatus) string {
	if g.Started.IsZero() {
		return "-"
	}
	return time.Since(g.Started).Round(time.Second).String()
}

// endOf is how long its drain may still take.
func endOf(g supervisor.GenerationStatus) string {
	if g.Deadline.IsZero() {
		return "-"
	}
	return time.Until(g.Deadline).Round(time.Second).String()
}

// ledgerOf is the columns of what a generation has counted.
func ledgerOf(l *account.LedgerStatus) string {
	switch {
	case l == nil || !l.Written && l.Damage == "":
		return "-\t-\t-\t-"
	case l.Damage != "":
		return "damaged\t-\t-\t-"
	}
	return fmt.Sprintf("%d\t%d\t%d\t%.1fms", l.Requests, l.Errors, l.InFlight, l.P99MS)
}
