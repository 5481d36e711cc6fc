// Command baton supervises the proxy of a node and replaces it without a client
// noticing. This file is wiring; each command has a file of its own.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	// Its init makes this executable the shim that starts generations.
	_ "github.com/baton-mesh/baton/supervisor/spawn"
)

// version is set by the linker.
var version = "development"

// The exit codes that no outcome of a release has.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 5 // as a release that is refused
)

// exitError ends the program with a code. Its err, if any, is printed.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

func main() {
	root := newRootCommand()
	cmd, err := root.ExecuteC()
	if err == nil {
		return
	}
	code := exitUsage // what cobra itself finds wrong
	var exit exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "baton:", text)
	}
	switch {
	case code != exitUsage:
	case cmd == root:
		fmt.Fprintln(os.Stderr, "baton: see baton help")
	default:
		fmt.Fprintf(os.Stderr, "baton: see %s --help\n", cmd.CommandPath())
	}
	os.Exit(code)
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "baton",
		Short:         "Replace the proxy of a node while it carries traffic",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if out, _ := cmd.Flags().GetString("output"); out != "text" && out != "json" {
				return exitError{exitUsage, fmt.Errorf("--output %s: text or json", out)}
			}
			return nil
		},
	}
	root.PersistentFlags().String("socket", "/run/baton/admin.sock", "admin socket of the supervisor")
	root.PersistentFlags().StringP("output", "o", "text", "text or json")
	root.AddCommand(
		newRunCommand(), newKeepCommand(), newCheckCommand(), newConfigCommand(),
		newReleaseCommand(), newRollbackCommand(), newPauseCommand(), newResumeCommand(), newDrainCommand(),
		newStatusCommand(), newGenerationsCommand(), newReleasesCommand(), newBalanceCommand(),
		newDoctorCommand(), newDemoCommand(), newVersionCommand(),
	)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return output(cmd, map[string]string{"version": version}, func() { fmt.Println("baton", version) })
		},
	}
}

// noArgs is for commands that take flags alone.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, and %q is one", cmd.CommandPath(), args[0])
	}
	return nil
}

// oneArg is for commands that take one argument.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s takes %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

// output prints v as JSON or calls text, as -o says.
func output(cmd *cobra.Command, v any, text func()) error {
	if out, _ := cmd.Flags().GetString("output"); out == "json" {
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	text()
	return nil
}
