package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
)

func newPauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause", Short: "Keep the release that runs at its share of new flows", Args: noArgs,
		Long: `Keep the release that runs at its share of new flows, until baton resume. It is
watched all the while: what it fails by shifts it back. baton rollback aborts it.
Exit code 5: there is nothing to pause.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, (*admin.Client).Pause, printRelease)
		},
	}
}

func newResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Let a paused release go on", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operate(cmd, (*admin.Client).Resume, printRelease)
		},
	}
}

func newDrainCommand() *cobra.Command {
	var deadline time.Duration
	cmd := &cobra.Command{
		Use: "drain GENERATION", Short: "Bring the end of a generation's drain forward", Args: oneArg("the number of a generation that drains: baton generations lists them"),
		Long: `Bring the end of a generation's drain forward. What it has not finished by then is
closed, and counted. One that gets new flows does not drain: release another in
its place. Exit code 5: it is not draining, or its drain ends sooner anyway.`,
		ValidArgsFunction: completeDraining,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return exitError{exitUsage, fmt.Errorf("%q is no generation's number", args[0])}
			}
			if deadline < 0 {
				return exitError{exitUsage, fmt.Errorf("--deadline %v: it lies ahead", deadline)}
			}
			return operate(cmd, func(c *admin.Client, ctx context.Context) (supervisor.GenerationStatus, error) {
				return c.Drain(ctx, id, deadline)
			}, func(g supervisor.GenerationStatus) { printGenerations([]supervisor.GenerationStatus{g}) })
		},
	}
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "how long it may still take, such as 10s")
	return cmd
}

// operate asks for one thing and prints what has become of it.
func operate[T any](cmd *cobra.Command, request func(*admin.Client, context.Context) (T, error), text func(T)) error {
	socket, _ := cmd.Flags().GetString("socket")
	st, err := request(admin.Dial(socket), cmd.Context())
	switch {
	case errors.Is(err, supervisor.ErrRefused):
		return exitError{exitRefused, err}
	case err != nil:
		return exitError{exitFailed, err}
	}
	return output(cmd, st, func() { text(st) })
}

func printRelease(r supervisor.ReleaseStatus) { printRunning(stdout, r) }

func printRunning(to io.Writer, r supervisor.ReleaseStatus) {
	paused := ""
	if r.Paused {
		paused = ", paused"
	}
	of := ""
	if len(r.Listeners) > 0 {
		of = " of " + strings.Join(r.Listeners, ", ")
	}
	fmt.Fprintf(to, "release %d is in %s%s: generation %d gets %.4g%% of new flows%s\n", r.ID, r.Stage, paused, r.Generation, r.Weight*100, of)
}

// completeDraining offers the generations that drain.
func completeDraining(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := status(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var all []string
	for _, g := range st.Generations {
		if g.State == supervisor.Draining {
			all = append(all, strconv.FormatUint(g.ID, 10))
		}
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}
