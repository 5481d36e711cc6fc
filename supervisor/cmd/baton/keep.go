package main

import (
	"errors"
	"log/slog"
	"os"

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
runtime_dir; a keeper of a unit or a container of its own outlives more.

Under a service manager with a store of descriptors (FileDescriptorStoreMax= of
systemd) a copy of everything is kept there, so a keeper that is killed goes on where
it was. Exits with 5 where another keeper answers.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
			err := keeper.ServeStored(keeper.Socket(dir), func(err error) {
				if err == nil {
					log.Info("the service manager has everything again")
					return
				}
				log.Error("not all of what is held is with the service manager", "error", err)
			})
			switch {
			case errors.Is(err, keeper.ErrAnswers):
				return exitError{exitRefused, err}
			case err != nil:
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "runtime-dir", "/run/baton", "the supervisor's runtime_dir")
	return cmd
}
