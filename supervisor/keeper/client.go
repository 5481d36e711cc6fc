package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processName is argv[0] of a keeper that [Start] has made: this executable,
// which becomes one before main.
const processName = "baton-keep"

func init() {
	if len(os.Args) == 2 && os.Args[0] == processName {
		unix.Prctl(unix.PR_SET_NAME, uintptr(namePointer()), 0, 0, 0)
		// Of all threads: who waits for a keeper waits for its turn on a busy machine. It
		// does next to nothing.
		unix.Setpriority(unix.PRIO_PGRP, 0, -20)
		if err := Serve(os.Args[1]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Client speaks with a keeper. Its methods may be called by several goroutines.
//
// An answer that does not come in time, or is none, ends the connection: one that
// came late would be taken for that of a later request.
type Client struct {
	mu    sync.Mutex
	conn  *net.UnixConn
	pidfd int // of the process that answers

	managed bool // what has answered will be started again by others, see [message]
}

// A keeper does nothing that takes long; who asks for everything cannot do without
// and is more patient.
var (
	answerTimeout = 2 * time.Second
	allTimeout    = 10 * time.Second
)

// startTimeout bounds the wait for a keeper that was started.
var startTimeout = 10 * time.Second

// pingEvery is how often [Watch] asks whether the keeper answers.
const pingEvery = time.Second

// Connect finds the keeper at a path.
func Connect(path string) (*Client, error) {
	conn, err := net.DialUnix("unixpacket", nil, address(path))
	if err != nil {
		return nil, err
	}
	if !trusted(conn) {
		conn.Close()
		return nil, fmt.Errorf("%s belongs to another user", path)
	}
	pidfd, err := processOf(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("the process that answers at %s: %w", path, err)
	}
	return &Client{conn: conn, pidfd: pidfd}, nil
}

// Start makes a keeper at a path, in a session of its own, and connects to it. It
// outlives this process, until [Client.Quit].
func Start(path string) (*Client, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{processName, path}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, null}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, fmt.Errorf("start a keeper: %w", err)
	}
	ended := make(chan struct{})
	go func() { p.Wait(); close(ended) }() // or it stays a zombie
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(time.Millisecond) {
		c, err := Connect(path)
		if err == nil {
			return c, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("the keeper ended at once: %w", err)
		default:
		}
		if time.Now().After(deadline) {
			p.Kill()
			return nil, fmt.Errorf("the keeper does not answer: %w", err)
		}
	}
}

// Put gives the keeper a copy of each descriptor, in place of what has its name.
func (c *Client) Put(fds map[string]int) error {
	names := make([]string, 0, len(fds))
	for name := range fds {
		names = append(names, name)
	}
	slices.Sort(names)
	for part := range slices.Chunk(names, batch) {
		copies := make([]int, len(part))
		for i, name := range part {
			copies[i] = fds[name]
		}
		if err := c.ask(message{Op: "put", Names: part}, copies, nil); err != nil {
			return err
		}
	}
	return nil
}

// Drop makes the keeper close its copies. When it returns they are closed.
func (c *Client) Drop(names []string) error {
	for part := range slices.Chunk(names, batch) {
		if err := c.ask(message{Op: "drop", Names: part}, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// All is everything that is kept, by name. The descriptors are the caller's.
func (c *Client) All() (map[string]int, error) {
	all := map[string]int{}
	err := c.askWithin(allTimeout, message{Op: "all"}, nil, all)
	if err != nil {
		for _, fd := range all {
			unix.Close(fd)
		}
		return nil, err
	}
	return all, nil
}

// Ping has the keeper answer.
func (c *Client) Ping() error { return c.ask(message{Op: "drop"}, nil, nil) } // of nothing

// Quit ends the keeper, and with it all that it holds.
func (c *Client) Quit() error { return c.ask(message{Op: "quit"}, nil, nil) }

// Kill ends a keeper that does not answer any more, stopped or stuck: what it holds
// would outlive what its owner has closed. When it returns without an error the
// keeper's copies are closed.
func (c *Client) Kill() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return net.ErrClosed
	}
	if err := unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the keeper: %w", err)
	}
	// Readable when it has ended; its descriptors are closed by then (do_exit,
	// kernel/exit.c).
	ended := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
	for deadline := time.Now().Add(startTimeout); ; {
		n, err := unix.Poll(ended, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("the keeper does not end, although it was killed")
		default:
			return nil
		}
	}
}

// Close leaves the keeper to itself.
func (c *Client) Close() error {
	c.conn.Close() // whoever waits for an answer waits no more
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd < 0 {
		return net.ErrClosed
	}
	unix.Close(c.pidfd)
	c.pidfd = -1
	return nil
}

func (c *Client) ask(m message, fds []int, all map[string]int) error {
	return c.askWithin(answerTimeout, m, fds, all)
}

// askWithin sends a request and reads what answers it, descriptors into all.
func (c *Client) askWithin(d time.Duration, m message, fds []int, all map[string]int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.SetDeadline(time.Now().Add(d))
	if err := send(c.conn, m, fds); err != nil {
		c.conn.Close()
		return fmt.Errorf("ask the keeper: %w", err)
	}
	for {
		answer, got, err := receive(c.conn)
		if err != nil {
			c.conn.Close()
			return fmt.Errorf("hear the keeper: %w", err)
		}
		if answer.Error != "" {
			return fmt.Errorf("the keeper: %s", answer.Error)
		}
		if len(got) != len(answer.Names) || all == nil && len(got) > 0 {
			closeAll(got)
			c.conn.Close()
			return errors.New("the keeper gives other descriptors than it names")
		}
		c.managed = answer.Managed
		for i, name := range answer.Names {
			all[name] = got[i]
		}
		if !answer.More {
			return nil
		}
	}
}

// Watch returns when the keeper at a path has ended, or does not answer, or when the
// path is gone, by which the next supervisor would find it: then it has ended it.
func Watch(path string, stop <-chan struct{}) {
	silent, err := Connect(path)
	if err != nil {
		return
	}
	defer silent.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		silent.conn.Read(make([]byte, 1)) // it says nothing unasked
	}()
	defer func() {
		silent.conn.Close()
		<-ended
	}()
	asked, err := Connect(path)
	if err != nil {
		return
	}
	defer asked.Close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-stop:
			return
		case <-tick.C:
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) || asked.Ping() != nil {
				asked.Kill()
				return
			}
		}
	}
}
