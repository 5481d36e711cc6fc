package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
)

func newReleaseCommand() *cobra.Command {
	var req supervisor.Request
	var ramp string
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Replace the generation; wait for the verdict and print it",
		Long: `Replace the generation; wait for the verdict and print it.

With --listener the candidate gets the new flows of that listener alone, and the
others stay where they are. A listener belongs to the generation that it was last
released for; a generation without any drains. Without --listener a release is of all.

One release runs, one waits; a later request takes the waiting one's place.
Exit codes: 0 passed, 1 failed, 2 usage, 3 failed and rolled back,
4 inconclusive and held, 5 refused before any flow moved (or superseded),
6 the rollback itself failed.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.ConfigPath, err = absolute(req.ConfigPath); err != nil {
				return exitError{exitUsage, err}
			}
			if strings.ContainsRune(req.Binary, '/') {
				if req.Binary, err = absolute(req.Binary); err != nil {
					return exitError{exitUsage, err}
				}
			}
			if req.Ramp, err = parseRamp(ramp); err != nil {
				return exitError{exitUsage, err}
			}
			return ask(cmd, func(ctx context.Context, c *admin.Client) (supervisor.Result, error) { return c.Release(ctx, req) })
		},
	}
	cmd.Flags().StringVarP(&req.ConfigPath, "config", "c", "", "configuration file (default: the supervisor's own, as it is now)")
	cmd.Flags().StringVar(&req.Binary, "binary", "", "binary in place of the first word of proxy.command")
	cmd.Flags().StringVar(&ramp, "ramp", "", "shares of new flows, such as 1%,25%,100% (default: release.ramp)")
	cmd.Flags().StringArrayVar(&req.Listeners, "listener", nil, "listener whose new flows alone the candidate gets; may be given again (default: all)")
	cmd.Flags().BoolVar(&req.NoVerify, "no-verify", false, "pass without watching the candidate")
	return cmd
}

func newRollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the generation before, at once",
		Long: `Go back to the generation before, at once. A release that runs is aborted and
shifts back; otherwise what the previous generation ran is released again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, func(ctx context.Context, c *admin.Client) (supervisor.Result, error) {
				return goBack(func() (supervisor.Result, error) { return c.Rollback(ctx) })
			})
		},
	}
}

// goBack asks for a rollback, and again where that came too late for the release that it
// was to abort. The exit code is the rollback's, whichever release the result is of.
func goBack(rollback func() (supervisor.Result, error)) (supervisor.Result, error) {
	for {
		res, err := rollback()
		if err != nil {
			return res, err
		}
		own := res.Cause == "rollback"
		switch {
		case !own && (res.Outcome == supervisor.Passed || res.Outcome == supervisor.Inconclusive):
			continue
		case !own && (res.Outcome == supervisor.RolledBack || res.Outcome == supervisor.Refused):
			res.ExitCode = 0 // it did not pass, which is what was asked for
		case res.Outcome != supervisor.Passed && res.Outcome != supervisor.Superseded:
			res.ExitCode = supervisor.RollbackFailed.ExitCode()
		}
		return res, nil
	}
}

// ask sends a request, prints the result and exits with its code. Interrupting
// it does not interrupt the release.
func ask(cmd *cobra.Command, request func(context.Context, *admin.Client) (supervisor.Result, error)) error {
	socket, _ := cmd.Flags().GetString("socket")
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	res, err := request(ctx, admin.Dial(socket))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return exitError{exitFailed, errors.New("interrupted; the release goes on, see baton status")}
	case errors.Is(err, supervisor.ErrRefused):
		return exitError{exitRefused, err}
	default:
		return exitError{exitFailed, err}
	}
	// The exit code is the verdict's, whoever reads what is printed.
	signal.Ignore(syscall.SIGPIPE)
	err = output(cmd, res, func() { printResult(res, advice(res)) })
	if errors.Is(err, syscall.EPIPE) {
		err = nil
	}
	return exitError{res.ExitCode, err}
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	if !utf8.ValidString(path) { // it would reach the supervisor as another one
		return "", fmt.Errorf("%q is not UTF-8: rename it", path)
	}
	return filepath.Abs(path)
}

func parseRamp(text string) ([]config.Percent, error) {
	if text == "" {
		return nil, nil
	}
	var ramp []config.Percent
	for part := range strings.SplitSeq(text, ",") {
		var p config.Percent
		if err := p.UnmarshalText([]byte(part)); err != nil {
			return nil, fmt.Errorf("--ramp: %w", err)
		}
		if len(ramp) > 0 && p <= ramp[len(ramp)-1] {
			return nil, errors.New("--ramp: the shares must rise")
		}
		ramp = append(ramp, p)
	}
	if ramp[len(ramp)-1] != 1 {
		return nil, errors.New("--ramp: the last share must be 100%")
	}
	return ramp, nil
}
