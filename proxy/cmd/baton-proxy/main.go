// Command baton-proxy runs one generation of the proxy.
//
//	baton-proxy                       with the sockets and the configuration a supervisor passes
//	baton-proxy --config FILE         alone: it binds the listeners of the file itself
//	baton-proxy check [--config FILE] build everything but listen to nothing; one mistake a line, exit 1
//	baton-proxy version
//
// SIGTERM finishes what there is and exits 0; a second one closes what is left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/contract"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// version is set by the linker.
var version = "development"

// The supervisor executes the binary by descriptor, and the kernel would then
// name the process after a number. Here, since prctl names the calling thread
// and init alone is sure to be on the process's first.
func init() {
	name := [16]byte{}
	copy(name[:15], "baton-proxy")
	unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
}

func main() {
	flags := flag.NewFlagSet("baton-proxy", flag.ContinueOnError)
	file := flags.String("config", "", "run without a supervisor, with this `file`")
	level := new(slog.Level)
	flags.TextVar(level, "log-level", slog.LevelInfo, "log what is at least at this `level`: debug (a line for each request), info, warn or error")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: baton-proxy [check|version] [--config FILE] [--log-level LEVEL]")
		flags.PrintDefaults()
	}
	command, args := "run", os.Args[1:]
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(exitUsage)
	}
	if flags.NArg() > 0 {
		flags.Usage()
		os.Exit(exitUsage)
	}

	var err error
	switch command {
	case "run":
		if err = run(*file, level); err != nil {
			// What the supervisor shows as the reason of the release's failure.
			contract.Notify(context.Background(), "STATUS="+strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	case "check":
		_, err = build(*file, proxy.Options{})
	case "version":
		fmt.Println("baton-proxy", version)
	default:
		flags.Usage()
		os.Exit(exitUsage)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
}

func run(file string, level slog.Leveler) error {
	// Before anything else: a SIGTERM during the start must not kill.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer spareCollections()()

	id, err := contract.GenerationID()
	if err != nil {
		return err
	}
	serverID, err := contract.ServerID()
	if err != nil {
		return err
	}
	slot, err := contract.Slot()
	if err != nil {
		return err
	}
	shared, err := sharedKeys()
	if err != nil {
		return err
	}
	if shared != nil {
		defer shared.Close()
	}
	log := slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	g, err := build(file, proxy.Options{
		Keys:       shared,
		Generation: id,
		Ledger:     account(log),
		ServerID:   serverID,
		Slot:       slot,
		Log:        log,
		Notify:     contract.Notify,
	})
	if err != nil {
		return err
	}
	var sockets contract.Passed
	if file == "" {
		sockets, err = contract.Sockets()
	} else {
		sockets, err = g.Bind()
	}
	if err != nil {
		return err
	}
	if err := g.Listen(sockets); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(context.Background())
	lastCall := make(chan struct{})
	go func() {
		<-signals
		stop()
		<-signals
		close(lastCall)
	}()
	g.Run(ctx, lastCall)
	return nil
}

// sharedKeys opens the keys that the supervisor passed; nil if it passed none.
func sharedKeys() (*keys.Reader, error) {
	f, err := contract.Keys()
	if f == nil {
		return nil, err
	}
	defer f.Close()
	return keys.Open(int(f.Fd()))
}

// account opens the ledger that the supervisor passed; nil if it passed none, or
// one that this build cannot keep: clients do not suffer for it.
func account(log *slog.Logger) *ledger.Writer {
	f, err := contract.Ledger()
	if f == nil {
		if err != nil {
			log.Warn("no ledger is kept", "error", err)
		}
		return nil
	}
	defer f.Close()
	w, err := ledger.Open(int(f.Fd()))
	if err != nil {
		log.Warn("no ledger is kept", "error", err)
		return nil
	}
	return w
}

// build makes a generation of a file, or without one of what the supervisor passed.
func build(file string, opts proxy.Options) (*proxy.Generation, error) {
	cfg, err := load(file)
	if err != nil {
		return nil, err
	}
	return proxy.New(cfg, opts)
}

func load(file string) (*config.Config, error) {
	if file != "" {
		return config.Load(file)
	}
	text, err := contract.ReadConfig()
	if err != nil {
		return nil, err
	}
	if text == nil {
		return nil, fmt.Errorf("no configuration: neither --config nor %s", contract.EnvConfigFD)
	}
	// No environment: the supervisor has resolved what it read.
	return config.Receive("configuration", text)
}
