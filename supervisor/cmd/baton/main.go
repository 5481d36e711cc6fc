// Command baton supervises the proxy of a node and replaces it without a client
// noticing. This file is wiring; each command has a file of its own.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		newStatusCommand(), newTopCommand(), newGenerationsCommand(), newReleasesCommand(), newBalanceCommand(),
		newDoctorCommand(), newDemoCommand(), newVersionCommand(),
	)
	strict(root)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return output(cmd, map[string]string{"version": version}, func() { fmt.Fprintln(stdout, "baton", version) })
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
		return printed(json.NewEncoder(stdout).Encode(v))
	}
	text()
	return printed(stdout.err)
}

// stdout is where commands print. It keeps its first error: text is printed line by line,
// and must not be taken for printed where the disk is full.
var stdout = &printer{to: os.Stdout}

type printer struct {
	to  io.Writer
	err error
}

func (p *printer) Write(text []byte) (int, error) {
	n, err := p.to.Write(text)
	if p.err == nil {
		p.err = err
	}
	return n, err
}

// printed makes a failure to print one of this command, not of its usage.
func printed(err error) error {
	if err != nil {
		return exitError{exitFailed, fmt.Errorf("print: %w", err)}
	}
	return nil
}

// socketOf lets --socket of a command that loads the configuration override its
// admin.socket, now and at each release.
func socketOf(cmd *cobra.Command) error {
	f := cmd.Flags().Lookup("socket")
	if !f.Changed {
		return nil
	}
	socket, err := absolute(f.Value.String())
	if err != nil {
		return exitError{exitUsage, err}
	}
	return os.Setenv("BATON_ADMIN_SOCKET", socket)
}

// strict has the commands that cobra brings refuse what they do not know, as ours do.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				_, _, err := root.Find(args)
				return err
			}
		case "completion":
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}
