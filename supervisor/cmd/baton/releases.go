package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/trace"
)

func newReleasesCommand() *cobra.Command {
	var tree bool
	var export string
	cmd := &cobra.Command{
		Use:   "releases [ID]",
		Short: "List the releases that have ended, or show one",
		Long: `List the releases that have ended, or show one.

--trace draws the spans of a release with their times. --export writes them, and
those of the requests kept while it ran, as OTLP/JSON, which Jaeger and Tempo
read; - is standard output.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && (tree || export != "") {
				return exitError{exitUsage, errors.New("--trace and --export: of which release?")}
			}
			var id uint64
			if len(args) == 1 {
				var err error
				if id, err = strconv.ParseUint(args[0], 10, 64); err != nil {
					return exitError{exitUsage, fmt.Errorf("%q is no release's number", args[0])}
				}
			}
			socket, _ := cmd.Flags().GetString("socket")
			c := admin.Dial(socket)
			all, err := c.Releases(cmd.Context())
			if err != nil {
				return exitError{exitFailed, err}
			}
			if len(args) == 0 {
				return output(cmd, all, func() { printReleases(all) })
			}
			for _, r := range all {
				if r.ID == id {
					return showRelease(cmd, c, r, tree, export)
				}
			}
			return exitError{exitFailed, fmt.Errorf("release %d is not among the last %d", id, len(all))}
		},
	}
	cmd.Flags().BoolVar(&tree, "trace", false, "draw the spans of the release")
	cmd.Flags().StringVar(&export, "export", "", "write the spans to a file as OTLP/JSON; - is standard output")
	return cmd
}

func showRelease(cmd *cobra.Command, c *admin.Client, r supervisor.Result, tree bool, export string) error {
	if !tree && export == "" {
		return output(cmd, r, func() { printResult(r, "") })
	}
	text, err := c.Trace(cmd.Context(), r.ID)
	if err != nil {
		return exitError{exitFailed, err}
	}
	switch export {
	case "":
	case "-":
		if _, err := os.Stdout.Write(append(text, '\n')); err != nil {
			return exitError{exitFailed, err}
		}
	default:
		if err := os.WriteFile(export, text, 0o600); err != nil {
			return exitError{exitFailed, fmt.Errorf("--export: %w", err)}
		}
	}
	if !tree {
		return nil
	}
	spans, err := trace.ParseJSON(text)
	if err != nil {
		return exitError{exitFailed, err}
	}
	return output(cmd, text, func() {
		printResult(r, "")
		fmt.Fprintln(stdout)
		trace.Draw(stdout, spans, r.TraceID)
	})
}
