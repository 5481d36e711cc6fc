package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

func newBalanceCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "balance", Short: "Run the XDP balancer, in the foreground", Args: noArgs,
		Long: `Run the XDP balancer of a configuration, in the foreground, and nothing else of it;
baton run does both where its file has balancer.

SIGHUP reads the file again. SIGTERM and SIGINT end the process, and packets are
forwarded as they were until the next one; baton balance remove ends that.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if path == "" {
				return exitError{exitUsage, errors.New("balance: --config FILE is required")}
			}
			if err := socketOf(cmd); err != nil {
				return err
			}
			if err := balance(cmd.Context(), path); err != nil {
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file")
	cmd.AddCommand(newBalanceStatusCommand(), newBalanceReloadCommand(), newBalanceDrainCommand(), newBalanceSimulateCommand(), newBalanceRemoveCommand())
	return cmd
}

// loadBalancer reads the balancer's part of a file.
func loadBalancer(path string) (*config.Config, error) {
	c, err := config.Load(path)
	if err == nil && c.Balancer == nil {
		err = fmt.Errorf("%s has no balancer", path)
	}
	return c, err
}

func balance(ctx context.Context, path string) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	conf, err := loadBalancer(path)
	if err != nil {
		return err
	}
	ids := idkeys.New(idkeys.Options{File: conf.ConnectionIDs.KeyFile, Log: log})
	b, program, err := newBalancer(conf, path, log, ids, func() {
		log.Info("balancing", "vips", len(conf.Balancer.VIPs), "reals", len(conf.Balancer.Reals), "admin", conf.Admin.Socket)
		if err := contract.Notify(ctx, "READY=1"); err != nil {
			log.Warn("tell the service manager", "error", err)
		}
	})
	if err != nil {
		return err
	}
	defer program.Close()
	server, err := admin.Listen(nil, b, conf.Admin.Socket, conf.Admin.Address, log)
	if err != nil {
		return err
	}
	defer server.Close()
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() { ids.Watch(ctx) })
	go func() {
		for sig := range signals {
			if sig == syscall.SIGHUP {
				reloadBalancer(b, log)
				continue
			}
			stop()
		}
	}()
	return b.Run(ctx)
}

// newBalancer opens the program and what decides its tables. ids are the keys that it
// reads connection IDs by; nil: it gets them otherwise. serving may be nil: then nothing
// that can be tried again is an error.
func newBalancer(conf *config.Config, path string, log *slog.Logger, ids *idkeys.Keys, serving func()) (*balancer.Balancer, *balancer.Program, error) {
	program, err := balancer.Open(conf.RuntimeDir)
	if err != nil {
		return nil, nil, err
	}
	if ids != nil {
		if err := ids.ReadBy(program.Keys()); err != nil {
			program.Close()
			return nil, nil, err
		}
		if err := ids.Load(); err != nil {
			log.Error("the keys of connection IDs stay as they were", "error", err)
		}
	}
	b, err := balancer.New(balancer.Options{
		Config: conf.Balancer, Kernel: program, Hang: program, Log: log, IDs: ids, Serving: serving,
		Load: func() (*config.Balancer, error) {
			c, err := loadBalancer(path)
			if err != nil {
				return nil, err
			}
			return c.Balancer, nil
		},
	})
	if err != nil {
		program.Close()
		return nil, nil, err
	}
	return b, program, nil
}

// balanceBeside runs the balancer of a file that has one until end is called. b is
// nil for other files.
func balanceBeside(ctx context.Context, conf *config.Config, path string, log *slog.Logger) (b *balancer.Balancer, program *balancer.Program, end func(), err error) {
	if conf.Balancer == nil {
		return nil, nil, func() {}, nil
	}
	b, program, err = newBalancer(conf, path, log, nil, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := b.Run(ctx); err != nil {
			log.Error("the balancer has ended", "error", err)
		}
	}()
	return b, program, func() {
		cancel()
		<-ended
		program.Close()
	}, nil
}

func reloadBalancer(b *balancer.Balancer, log *slog.Logger) {
	done, err := b.Reload()
	if err != nil {
		log.Error("reload of the balancer", "error", err)
		return
	}
	log.Info("the balancer has read its file again", "vips", done.VIPs, "reals", done.Reals, "milliseconds", done.Milliseconds)
}

// askBalancer asks for one thing and prints what has come of it.
func askBalancer[T any](cmd *cobra.Command, request func(*admin.Client, context.Context) (T, error), text func(T)) error {
	socket, _ := cmd.Flags().GetString("socket")
	got, err := request(admin.Dial(socket), cmd.Context())
	switch {
	case errors.Is(err, supervisor.ErrRefused): // as the client says it of both
		return exitError{exitRefused, err}
	case err != nil:
		return exitError{exitFailed, err}
	}
	return output(cmd, got, func() { text(got) })
}

func newBalanceStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show interfaces, reals and VIPs", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askBalancer(cmd, (*admin.Client).BalancerStatus, printBalancer)
		},
	}
}

func newBalanceReloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Read the file again", Args: noArgs,
		Long: `Read the file again and put what has changed in force. Exit code 5: it has a mistake,
and nothing has changed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askBalancer(cmd, (*admin.Client).BalancerReload, func(r balancer.Reloaded) {
				fmt.Fprintf(stdout, "%d reals and %d VIPs in force after %.1f ms\n", r.Reals, r.VIPs, r.Milliseconds)
			})
		},
	}
}

func newBalanceDrainCommand() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use: "drain REAL", Short: "Take a real's new flows away; those it has stay", Args: oneArg("the name of a real: baton balance status lists them"),
		Long: `Take a real's new flows away. Those that it has stay with it, by their id or by the
connection table. It stays so over reloads and restarts, until drain --undo.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return askBalancer(cmd, func(c *admin.Client, ctx context.Context) (balancer.RealStatus, error) {
				return c.DrainReal(ctx, args[0], undo)
			}, func(r balancer.RealStatus) { printReals([]balancer.RealStatus{r}) })
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "give them back")
	return cmd
}

func newBalanceSimulateCommand() *cobra.Command {
	var from, to string
	var p balancer.Packet
	cmd := &cobra.Command{
		Use: "simulate --from IP:PORT --to IP:PORT", Short: "Say where a packet would go, and why", Args: noArgs,
		Long: `Ask the program where a packet would go, and why. Nothing is sent, counted or remembered.
With --server-id the packet carries an id: by tcp as the option, by quic as its connection ID.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err1, err2 error
			p.From, err1 = netip.ParseAddrPort(from)
			p.To, err2 = netip.ParseAddrPort(to)
			if err := errors.Join(err1, err2); err != nil {
				return exitError{exitUsage, err}
			}
			return askBalancer(cmd, func(c *admin.Client, ctx context.Context) (balancer.Where, error) {
				return c.Simulate(ctx, p)
			}, func(w balancer.Where) {
				to := w.Real
				if to == "" {
					to = "nobody"
				}
				fmt.Fprintf(stdout, "%s, to %s: %s\n", w.Verdict, to, strings.Join(append([]string{w.Reason}, w.Beside...), ", "))
			})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the client, such as 192.0.2.7:40000")
	cmd.Flags().StringVar(&to, "to", "", "the VIP, such as 10.9.0.1:443")
	cmd.Flags().StringVar(&p.Protocol, "protocol", "tcp", "tcp, udp or quic")
	cmd.Flags().Uint32Var(&p.ServerID, "server-id", 0, "the id that the packet carries")
	cmd.Flags().BoolVar(&p.SYN, "syn", false, "of tcp: the first packet of a connection")
	cmd.MarkFlagRequired("from")
	cmd.MarkFlagRequired("to")
	return cmd
}

func newBalanceRemoveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "remove --config FILE", Short: "Take the program off, and all it remembers", Args: noArgs,
		Long: `Take the program that a balancer has left off its interfaces, with its tables: packets
for the VIPs are this host's own again. No balancer of the file may be running.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := loadBalancer(path)
			if err == nil {
				err = balancer.Remove(conf.RuntimeDir)
			}
			if err != nil {
				return exitError{exitFailed, err}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file")
	cmd.MarkFlagRequired("config")
	return cmd
}

func printBalancer(st balancer.Status) {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "INTERFACE\tATTACHED\tPROBLEM")
	for _, i := range st.Interfaces {
		fmt.Fprintf(w, "%s\t%v\t%s\n", i.Name, i.Attached, i.Problem)
	}
	w.Flush()
	fmt.Fprintln(stdout)
	printReals(st.Reals)
	fmt.Fprintln(stdout)
	fmt.Fprintln(w, "VIP\tPORT\tPROTOCOL\tSERVING\tBY ID\tBY TABLE\tBY HASH\tNOBODY")
	for _, v := range st.VIPs {
		port := fmt.Sprint(v.Port)
		if v.Port == 0 {
			port = "any"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d of %d\t%d\t%d\t%d\t%d\n", v.Address, port, v.Protocol, v.Serving, v.Reals,
			v.Packets["cid"]+v.Packets["option"], v.Packets["table"], v.Packets["ring"], v.Packets["no_real"])
	}
	w.Flush()
	if ids := st.ConnectionIDs; ids != nil {
		fmt.Fprintf(stdout, "\nconnection IDs: read by keys %s\n", joined(ids.Read))
		printKeyProblem(ids)
	}
	if st.Reloads.Problem != "" {
		fmt.Fprintf(stdout, "\nthe last reload has failed: %s\n", st.Reloads.Problem)
	}
}

func printReals(all []balancer.RealStatus) {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "REAL\tADDRESS\tSTATE\tSHARE\tWEIGHT\tSERVER ID\tMAC\tPACKETS\tPROBLEM")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.0f%%\t%d\t%d\t%s\t%d\t%s\n", r.Name, r.Address, r.State, r.Share*100, r.Weight, r.ServerID, r.MAC, r.Packets, r.Problem)
	}
	w.Flush()
}
