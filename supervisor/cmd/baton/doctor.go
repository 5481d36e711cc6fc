package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/bpf/iter"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/bpf/xdp"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/doctor"
)

func newDoctorCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this kernel, these privileges and these ports allow",
		Long: `Try what Baton needs of this host, and say what to do about what is missing.
With a configuration also its user, its binary, and who else holds its ports.

Nothing that runs is disturbed. Answers 0 if Baton can run here, warnings or
not, else 1. Neither clang nor kernel headers are needed on a node.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDoctor(cmd, file)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration `FILE` whose listeners are examined too")
	return cmd
}

func runDoctor(cmd *cobra.Command, file string) error {
	o := doctor.Options{Steering: trySteering, Iterator: iter.Supported, Balancer: tryBalancer}
	if file != "" {
		var err error
		if o.Config, err = config.Load(file); err != nil {
			return exitError{1, err}
		}
	}
	report := doctor.Run(o)
	if output, _ := cmd.Flags().GetString("output"); output == "json" {
		out := json.NewEncoder(cmd.OutOrStdout())
		out.SetIndent("", "  ")
		if err := out.Encode(report); err != nil {
			return printed(err)
		}
	} else if _, err := report.WriteTo(cmd.OutOrStdout()); err != nil {
		return printed(err)
	}
	if !report.Healthy {
		return exitError{1, errors.New("baton cannot run here; each line marked fail says what to do")}
	}
	return nil
}

// trySteering loads the steering program, pinned nowhere and attached to
// nothing, and forgets it.
func trySteering() error {
	node, err := reuseport.Open("")
	if err != nil {
		return err
	}
	return node.Close()
}

// tryBalancer does the same with the balancer's program.
func tryBalancer() error {
	err := xdp.Supported()
	if errors.Is(err, xdp.ErrNoPlace) {
		return fmt.Errorf("%w: %w", doctor.ErrNotTried, err)
	}
	return err
}
