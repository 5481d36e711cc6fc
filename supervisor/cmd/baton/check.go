package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/proxy/config"
)

// checkReport is what baton check -o json prints.
type checkReport struct {
	File     string           `json:"file"`
	Valid    bool             `json:"valid"`
	Mistakes []config.Mistake `json:"mistakes"`
	Warnings []string         `json:"warnings"`
}

func newCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Validate a configuration",
		Long: `Validate a configuration, with what the environment overrides, and print each
mistake on a line of its own: file, line, key, reason and what to write instead.

Nothing outside the file is looked at; "baton doctor --config FILE" does that.
Answers 0 if there is no mistake, else 1.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return exitError{exitUsage, fmt.Errorf("check takes one file, not %d", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCheck(cmd, args[0])
		},
	}
}

func runCheck(cmd *cobra.Command, file string) error {
	report := checkReport{File: file, Mistakes: []config.Mistake{}, Warnings: environmentWarnings()}
	c, err := config.Load(file)
	var mistakes config.Mistakes
	switch {
	case err == nil:
		report.Valid = true
		report.Warnings = append(report.Warnings, c.Warnings(time.Now())...)
	case errors.As(err, &mistakes):
		report.Mistakes = mistakes
	default: // the file cannot be read
		report.Mistakes = config.Mistakes{{File: file, Reason: err.Error()}}
	}
	if err := report.write(cmd); err != nil {
		return printed(err)
	}
	if !report.Valid {
		return exitError{exitFailed, fmt.Errorf("%s is not valid; mistakes: %d", file, len(report.Mistakes))}
	}
	return nil
}

func (r checkReport) write(cmd *cobra.Command) error {
	if output, _ := cmd.Flags().GetString("output"); output == "json" {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	for _, w := range r.Warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	for _, m := range r.Mistakes {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), m.Error()); err != nil {
			return err
		}
	}
	if r.Valid {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", r.File)
		return err
	}
	return nil
}

// environmentWarnings is never nil, so that JSON has a list.
func environmentWarnings() []string {
	warnings := []string{}
	for _, name := range config.UnknownEnv(os.Environ()) {
		warnings = append(warnings, name+" overrides no key of the configuration")
	}
	return warnings
}

func writeJSON(w io.Writer, v any) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(v)
}
