package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/account"
	"github.com/baton-mesh/baton/supervisor/admin"
)

func newTopCommand() *cobra.Command {
	var every time.Duration
	var count int
	cmd := &cobra.Command{
		Use: "top", Short: "Show what happens, second by second", Args: noArgs,
		Long: `Show what happens, second by second: who serves, the release that runs, and what each
generation and listener gets. Ctrl-C ends it. Where standard output is no terminal the
pictures follow each other.

NEW/S are connections of TCP that the kernel established; REQ/S, ERR/S and P99 are by
the ledger of a generation that keeps one, the last over its whole life.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return exitError{exitUsage, fmt.Errorf("--interval %v: 100ms at least", every)}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			socket, _ := cmd.Flags().GetString("socket")
			return top(ctx, cmd, admin.Dial(socket), every, count)
		},
	}
	cmd.Flags().DurationVar(&every, "interval", time.Second, "how often it is drawn")
	cmd.Flags().IntVar(&count, "count", 0, "how many pictures; 0: until it is ended")
	return cmd
}

// What a terminal takes for: another screen and no cursor, and back; to the first line;
// the rest of a line, and of the screen, is empty.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	firstLineOf = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// top draws until ctx ends. A supervisor that is being replaced does not end it: what it
// says meanwhile is in the picture.
func top(ctx context.Context, cmd *cobra.Command, c *admin.Client, every time.Duration, count int) error {
	_, err := screenSize()
	screen := err == nil
	if screen {
		io.WriteString(stdout, enterScreen)
		defer io.WriteString(stdout, leaveScreen)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var before, now supervisor.Status
	var at, was time.Time
	for drawn := 0; ; {
		st, err := c.Status(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var picture bytes.Buffer
		switch {
		case err != nil && !screen:
			return exitError{exitFailed, err}
		case err != nil:
			fmt.Fprintf(&picture, "%v\n", err)
			now = supervisor.Status{}
		default:
			before, was = now, at
			now, at = st, time.Now()
			drawTop(&picture, before, now, at.Sub(was))
		}
		if screen {
			size, err := screenSize()
			if err != nil {
				return exitError{exitFailed, fmt.Errorf("the terminal is gone: %w", err)}
			}
			io.WriteString(stdout, fit(picture.String(), int(size.Row), int(size.Col)))
		} else if err := output(cmd, now, func() { fmt.Fprintln(stdout, picture.String()) }); err != nil {
			return err
		}
		if drawn++; drawn == count {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// screenSize is the terminal's, which may change at any time; an error if there is none.
func screenSize() (*unix.Winsize, error) {
	return unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
}

// fit makes a picture one for a screen of so many rows and columns.
func fit(picture string, rows, columns int) string {
	lines := strings.Split(strings.TrimRight(picture, "\n"), "\n")
	var out strings.Builder
	out.WriteString(firstLineOf)
	for i, line := range lines[:min(len(lines), max(rows-1, 1))] {
		if i > 0 {
			out.WriteString("\n")
		}
		if text := []rune(line); len(text) > columns {
			line = string(text[:columns])
		}
		out.WriteString(line + clearLine)
	}
	return out.String() + clearRest
}

// drawTop writes a picture of what is now, and of what has changed since before.
func drawTop(to io.Writer, before, now supervisor.Status, since time.Duration) {
	printHead(to, now)
	fmt.Fprintln(to)
	// A supervisor that has begun since counts from where its ledgers and tables stand.
	known := before.PID == now.PID && since > 0
	rate := func(before, now uint64) string {
		if !known || now < before {
			return "-"
		}
		return fmt.Sprintf("%.0f", float64(now-before)/since.Seconds())
	}
	was := map[uint64]supervisor.GenerationStatus{}
	for _, g := range before.Generations {
		was[g.ID] = g
	}
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "GENERATION\tSTATE\tAGE\tDRAIN ENDS\tNEW/S\tOPEN\tREQ/S\tERR/S\tIN FLIGHT\tP99\tSAYS")
	for _, g := range now.Generations {
		requests := "-\t-\t-\t-"
		if l := g.Ledger; l != nil && l.Written && l.Damage == "" {
			then := was[g.ID].Ledger
			if then == nil {
				then = new(account.LedgerStatus) // it has begun since
			}
			requests = fmt.Sprintf("%s\t%s\t%d\t%.1fms", rate(then.Requests, l.Requests), rate(then.Errors, l.Errors), l.InFlight, l.P99MS)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.ID, stateOf(g), ageOf(g), endOf(g),
			rate(was[g.ID].Flows["established"], g.Flows["established"]), g.OpenFlows, requests, g.Message)
	}
	fmt.Fprintln(w)
	then := map[string]supervisor.ListenerStatus{}
	for _, l := range before.Listeners {
		then[l.Name] = l
	}
	fmt.Fprintln(w, "LISTENER\tGENERATION\tADDRESS\tPROTOCOL\tNEW/S\tSINK/S\tLOST/S\tDROPPED/S")
	for _, l := range now.Listeners {
		old := then[l.Name]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, orDash(l.Generation), l.Address, l.Protocol,
			rate(old.Flows["established"], l.Flows["established"]), rate(old.Runs["sink"], l.Runs["sink"]), rate(old.Runs["lost"], l.Runs["lost"]), rate(old.Dropped, l.Dropped))
	}
	w.Flush()
}
