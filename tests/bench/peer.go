package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// peer is a way of replacing a proxy.
type peer struct {
	name string
	// start serves generation 1 and returns at once or later; see [site.await].
	start func(tools, site) (server, error)
	// version is a command that prints it.
	version []string

	// What is known of it beforehand:
	stopsFirst bool // the old one must have finished before the new one starts
	noTrailers bool // it does not pass on the trailers of an answer
	strictOnly bool // only the strict clients are of interest
}

// tools is where Baton's executables are.
type tools struct{ dir, baton, proxy string }

// server is a peer that runs.
type server interface {
	// replace asks for a generation and may return before it serves.
	replace(ctx context.Context, generation int) error
	// roots are the processes of which all others of the server descend.
	roots() []int
	// spent is what processes used that belong to it and have ended, as far as no root knows of them.
	spent() time.Duration
	stop() error
}

var peers = []peer{
	{name: "baton", start: startBaton},
	{name: "baton-takeover", start: startTakeover},
	{name: "so_reuseport", start: startShared},
	{name: "drain-restart", start: startRestarted, stopsFirst: true},
	// nginx passes trailers on from 1.27.2, if it is told to.
	{name: "nginx", start: startNginx, version: []string{"nginx", "-v"}, noTrailers: true},
	{name: "haproxy", start: startHAProxy, version: []string{"haproxy", "-v"}},
	{name: "haproxy-default", start: startHAProxyDefault, strictOnly: true},
}

// versionOf is the first line of what a command prints, wherever it prints it.
func versionOf(command []string) (string, error) {
	out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(line, "nginx version: "), nil
}

// master is a server whose first process replaces its own workers by a signal.
type master struct {
	site
	config string // its file in testdata
	reload syscall.Signal
	*child
}

func (m *master) replace(_ context.Context, generation int) error {
	if _, err := m.write(m.config, generation); err != nil {
		return err
	}
	return m.signal(m.reload)
}

func (m *master) roots() []int         { return []int{m.pid()} }
func (m *master) spent() time.Duration { return 0 }

func startMaster(s site, config string, reload syscall.Signal, command ...string) (server, error) {
	path, err := s.write(config, 1)
	if err != nil {
		return nil, err
	}
	c, err := startChild(exec.Command(command[0], append(command[1:], path)...), path+".log")
	if err != nil {
		return nil, err
	}
	return &master{s, config, reload, c}, nil
}

func startNginx(_ tools, s site) (server, error) {
	return startMaster(s, "nginx.conf", syscall.SIGHUP, "nginx", "-p", s.Dir, "-e", "stderr", "-c")
}

func startHAProxy(_ tools, s site) (server, error) {
	s.IdleCloseOnResponse = true
	return startHAProxyDefault(tools{}, s)
}

func startHAProxyDefault(_ tools, s site) (server, error) {
	return startMaster(s, "haproxy.cfg", syscall.SIGUSR2, "haproxy", "-W", "-f")
}
