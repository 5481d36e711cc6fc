package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/supervisor/haste"
	"github.com/baton-mesh/baton/supervisor/state"
)

// leaveTimeout bounds the wait for another supervisor to give way: it finishes the
// release that is under way first.
const leaveTimeout = time.Minute

// leaveEvery is how often a supervisor tries to give way that a service manager has
// asked to, while a release is under way.
const leaveEvery = 50 * time.Millisecond

// killAt is set in binaries for tests, see killat.go.
var killAt func(runtimeDir string) func(transition string)

func newRunCommand() *cobra.Command {
	var path string
	var unsteered, replace bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Supervise, in the foreground",
		Long: `Supervise, in the foreground. Without a file: the built-in example on loopback,
with its own origin (see baton config default).

Where the file has balancer, it runs too, as by baton balance.

SIGHUP releases with the file as it is now, and reloads the balancer. SIGTERM and
SIGINT let /readyz fail for shutdown.lead, then drain, then exit; a second one
exits at once. SIGUSR2 gives way to another supervisor: this one ends, its
generations serve on, and the next one adopts them. --replace sends it, and takes
over; so does systemctl restart, by the unit in deploy/systemd.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := socketOf(cmd); err != nil {
				return err
			}
			if err := run(cmd.Context(), path, unsteered, replace); err != nil {
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file")
	cmd.Flags().BoolVar(&replace, "replace", false, "take over from the supervisor that runs")
	cmd.Flags().BoolVar(&unsteered, "unsteered", false, "leave new flows to the kernel's hash, to see what steering is for")
	cmd.Flags().MarkHidden("unsteered")
	return cmd
}

func run(ctx context.Context, path string, unsteered, replace bool) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	// What whoever started this has left open is for no generation.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep inherited descriptors from generations: %w", err)
	}
	// Before anything that takes time: a signal that comes early is not lost.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2)
	defer signal.Stop(signals)
	haste.Begin() // unless it has with the process
	defer haste.Calm()

	conf, stopOrigin, err := loadForRun(path, log)
	if err != nil {
		return err
	}
	defer stopOrigin()
	if os.Getpid() == 1 {
		log.Warn("this is PID 1: what it runs ends with it, and orphans of generations stay zombies; run it below an init, such as tini")
	}
	for _, name := range config.UnknownEnv(os.Environ()) {
		log.Warn("an environment variable names no key of the configuration", "variable", name)
	}
	if replace {
		asking, cancel := context.WithTimeout(ctx, leaveTimeout)
		defer cancel()
		if err := supervisor.MayFollow(conf.RuntimeDir); err != nil {
			return fmt.Errorf("the supervisor that runs stays: %w", err)
		}
		if err := state.AskToLeave(asking, conf.RuntimeDir); err != nil {
			return err
		}
	}
	var reached func(string)
	if killAt != nil {
		reached = killAt(conf.RuntimeDir)
	}
	balancing, program, endBalancing, err := balanceBeside(ctx, conf, path, log)
	if err != nil {
		return err
	}
	defer endBalancing()
	s, err := supervisor.New(supervisor.Options{
		Config: conf, ConfigPath: path, Log: log, Version: version, Unsteered: unsteered, Reached: reached,
		Serving: func() {
			log.Info("serving", "listeners", len(conf.Listeners), "admin", conf.Admin.Socket)
			if err := contract.Notify(ctx, "READY=1"); err != nil {
				log.Warn("tell the service manager", "error", err)
			}
		},
	})
	if err != nil {
		return err
	}
	if program != nil {
		if err := s.ReadIDsBy(program.Keys()); err != nil {
			log.Error("the balancer reads no encrypted connection IDs", "error", err)
		}
	}
	server, err := admin.Listen(s, balancing, conf.Admin.Socket, conf.Admin.Address, log)
	if err != nil {
		if s.Adopted() {
			return err // what serves is left for a supervisor whose addresses are free
		}
		// Run gives everything back that New took.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		s.Run(ended, nil)
		return err
	}
	defer server.Close()
	haste.Calm()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	hurry := make(chan struct{})
	go heedSignals(ctx, signals, s, balancing, server, stop, hurry, log)
	return s.Run(ctx, hurry)
}

// heedSignals turns signals into releases and the end.
func heedSignals(ctx context.Context, signals <-chan os.Signal, s *supervisor.Supervisor, b *balancer.Balancer, server *admin.Server, stop func(), hurry chan struct{}, log *slog.Logger) {
	asked := 0
	// A service manager asks once, and starts the next one whenever this one leaves.
	managed := os.Getenv(contract.EnvNotifySocket) != ""
	var again <-chan time.Time
	for {
		var sig os.Signal
		select {
		case sig = <-signals:
		case <-again:
			sig = syscall.SIGUSR2
		}
		switch {
		case sig == syscall.SIGUSR2:
			if err := s.Leave(); err != nil {
				if again == nil {
					log.Warn("asked to give way, and cannot yet", "reason", err, "then_will", managed)
				}
				if managed {
					again = time.After(leaveEvery)
				}
				continue
			}
			// Who has asked for a release that has just ended is still to be answered.
			server.Close()
			log.Info("giving way: the next supervisor adopts what runs")
			os.Exit(0)
		case sig == syscall.SIGHUP:
			if b != nil {
				go reloadBalancer(b, log)
			}
			go func() {
				if _, err := s.Release(ctx, "sighup", supervisor.Request{}); err != nil && !errors.Is(err, context.Canceled) {
					log.Error("release by SIGHUP", "error", err)
				}
			}()
		case asked == 0:
			asked++
			again = nil
			stop()
		case asked == 1:
			asked++
			close(hurry)
		}
	}
}

// loadForRun loads the file; without one it starts the example's origin.
func loadForRun(path string, log *slog.Logger) (*config.Config, func(), error) {
	if path != "" {
		c, err := config.Load(path)
		if err == nil && c.BalancesAlone() {
			err = fmt.Errorf("%s has no listeners: baton balance runs a balancer alone", path)
		}
		return c, func() {}, err
	}
	c, err := config.Parse("(built in)", config.Example(), os.Environ())
	if err != nil {
		return nil, nil, err
	}
	origin, err := demo.StartOrigin(endpoint(c, "origin"), endpoint(c, "echo"))
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("%w: the built-in example brings its own origin; give --config FILE to run with yours", err)
	}
	if err != nil {
		return nil, nil, err
	}
	_, port, _ := net.SplitHostPort(c.Listeners[0].Address)
	log.Info("no --config: running the built-in example", "try", "curl http://127.0.0.1:"+port+"/", "see", "baton config default")
	return c, func() { origin.Close() }, nil
}

func endpoint(c *config.Config, upstream string) string {
	for _, u := range c.Upstreams {
		if u.Name == upstream {
			return u.Endpoints[0]
		}
	}
	return ""
}
