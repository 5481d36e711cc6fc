package main

import (
	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/supervisor/keeper"
)

func newKeepCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "keep",
		Short: "Hold descriptors for a supervisor that may die",
		Long: `Hold descriptors for a supervisor that may die, in the foreground, until the
supervisor ends in order. baton run starts one by itself where none answers in its
runtime_dir; a keeper of a unit or a container of its own outlives more.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := keeper.Serve(keeper.Socket(dir)); err != nil {
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "runtime-dir", "/run/baton", "the supervisor's runtime_dir")
	return cmd
}
