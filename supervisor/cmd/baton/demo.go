package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/demo"
)

func newDemoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Replace a proxy under load, and count what its clients lost",
		Long: `Start a supervisor, an origin and clients of eighteen kinds on loopback (fifteen in takeover mode), then release:
three good candidates, one that never becomes ready, one that is killed right after
its shift, and a storm of fifty requests at once.

As root new flows are steered by BPF, else generations share their sockets.

It succeeds only if every release ended as it should, and nothing failed but
operations on connections of the process that was killed. It takes half a minute.`,
		Args: noArgs,
		RunE: runDemo,
	}
	cmd.AddCommand(&cobra.Command{
		Use:    demo.NeverReadyCommand,
		Short:  "Stand in for a proxy that never becomes ready",
		Hidden: true,
		Args:   noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			<-ctx.Done()
		},
	})
	return cmd
}

func runDemo(cmd *cobra.Command, _ []string) error {
	steering := ""
	if os.Geteuid() != 0 {
		steering = "takeover"
		fmt.Fprintln(os.Stderr, "not root, so without BPF: generations share their listening sockets (takeover mode). sudo baton demo shows steering.")
	}
	executable, err := os.Executable()
	if err != nil {
		return exitError{exitFailed, fmt.Errorf("find the baton binary: %w", err)}
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	// Progress goes where it does not mix with the result.
	_, err = unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	report, err := demo.Scenario{Executable: executable, Steering: steering, Given: given, Pins: supervisor.PinsOf, Progress: os.Stderr, Terminal: err == nil}.Run(ctx)
	if err != nil {
		return exitError{exitFailed, fmt.Errorf("demo: %w", err)}
	}
	err = output(cmd, report, func() { report.WriteTo(stdout) })
	if err == nil && !report.Passed {
		err = errors.New("the demo did not pass")
	}
	if err != nil {
		return exitError{exitFailed, err}
	}
	return nil
}

// given reads where the latest datagram of each flow went from what the supervisor has
// pinned.
func given(runtimeDir string) (map[demo.Flow]int, error) {
	slots, err := reuseport.RememberedIn(supervisor.PinsOf(runtimeDir))
	if err != nil {
		return nil, err
	}
	all := make(map[demo.Flow]int, len(slots))
	for f, slot := range slots {
		all[demo.Flow(f)] = int(slot)
	}
	return all, nil
}
