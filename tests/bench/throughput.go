package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// Throughput is what clients that never pause get through a peer, second by second
// within one run of theirs.
type Throughput struct {
	Steady Figure `json:"steady_per_s"` // of the seconds in which nothing happens
	During Figure `json:"during_per_s"` // of those in which the peer is replaced once
	// Share is During of Steady in the second beside, in percent.
	Share Figure `json:"share_percent"`
	// Control is the same of two seconds in which nothing happens: how far Share
	// goes astray by itself.
	Control Figure `json:"control_percent"`
	// CPU is what the peer's processes used for each request, in µs.
	CPU       Figure `json:"cpu_steady_us"`
	CPUDuring Figure `json:"cpu_during_us"`
	// Errors is what the clients counted in all runs.
	Errors int `json:"errors"`
}

const (
	connections = 32
	every       = time.Second     // what is counted together
	warmUp      = every           // of clients, before the first that counts
	runAtMost   = 5 * time.Minute // of clients whose end nobody asks for
)

// second is what one of them is for.
type second int

const (
	replaced second = iota // the peer is replaced as it begins
	steady                 // nothing happens; the one that both others are compared with
	control                // nothing happens either
	numSeconds
)

// order is that of a run: twice the three, backwards the second time, so that a
// machine that becomes slower or faster favours none.
var order = [...]second{replaced, steady, control, control, steady, replaced}

// subject is what clients use while it is replaced.
type subject struct {
	// clients run until ctx ends and return how many errors they have seen.
	clients func(context.Context) (errors int, err error)
	// answered counts their requests, at the origin.
	answered func() int64
	replace  func(context.Context) error
	// cpu is what the peer's processes have used; nil: it is of no interest.
	cpu func() (time.Duration, error)
}

// run has clients run through the order once, and adds what it found.
func (t *Throughput) run(ctx context.Context, s subject) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	type ending struct {
		errors int
		err    error
	}
	ended := make(chan ending, 1)
	go func() {
		n, err := s.clients(running)
		ended <- ending{n, err}
	}()
	err := sleep(ctx, warmUp)
	for i := 0; i < len(order) && err == nil; i += int(numSeconds) {
		err = t.three(ctx, s, order[i:i+int(numSeconds)])
	}
	stop()
	end := <-ended
	t.Errors += end.errors
	return errors.Join(err, end.err)
}

// three measures one second of each kind.
func (t *Throughput) three(ctx context.Context, s subject, kinds []second) error {
	var perSecond, cpu [numSeconds]float64
	for _, kind := range kinds {
		var err error
		if perSecond[kind], cpu[kind], err = s.measure(ctx, kind == replaced); err != nil {
			return err
		}
	}
	t.Steady.add(perSecond[steady])
	t.During.add(perSecond[replaced])
	t.Share.add(100 * perSecond[replaced] / perSecond[steady])
	t.Control.add(100 * perSecond[control] / perSecond[steady])
	if s.cpu != nil {
		t.CPU.add(cpu[steady])
		t.CPUDuring.add(cpu[replaced])
	}
	return nil
}

// measure counts for a second, or for longer if replacing takes longer. The CPU
// time is in µs for each request.
func (s subject) measure(ctx context.Context, replace bool) (perSecond, cpu float64, err error) {
	used, err := s.used()
	if err != nil {
		return 0, 0, err
	}
	began, answered := time.Now(), s.answered()
	if replace {
		if err := s.replace(ctx); err != nil {
			return 0, 0, err
		}
	}
	if err := sleep(ctx, time.Until(began.Add(every))); err != nil {
		return 0, 0, err
	}
	n, took := float64(s.answered()-answered), time.Since(began)
	if n == 0 {
		return 0, 0, fmt.Errorf("no request was answered in %v", took)
	}
	after, err := s.used()
	return n / took.Seconds(), float64((after - used).Microseconds()) / n, err
}

func (s subject) used() (time.Duration, error) {
	if s.cpu == nil {
		return 0, nil
	}
	return s.cpu()
}

// wrk returns clients of an URL.
func wrk(url string, args ...string) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) {
		args := append([]string{"-t1", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%ds", int(runAtMost.Seconds()))}, args...)
		cmd := exec.Command("wrk", append(args, url)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		// It then prints what it has, as it does at its own end.
		over := context.AfterFunc(ctx, func() { cmd.Process.Signal(os.Interrupt) })
		defer over()
		if err := cmd.Wait(); err != nil {
			return 0, fmt.Errorf("wrk on %s: %w\n%s", url, err, out.Bytes())
		}
		return parseWrk(out.Bytes())
	}
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in [\d.]+\w+,`)
	wrkErrors   = regexp.MustCompile(`(?m)(?:connect |read |write |timeout |responses: )(\d+)`)
)

// parseWrk returns the errors that wrk has counted: connect, read, write, timeout, status.
func parseWrk(out []byte) (errors int, err error) {
	if m := wrkRequests.FindSubmatch(out); m == nil || string(m[1]) == "0" {
		return 0, fmt.Errorf("wrk got no answer:\n%s", out)
	}
	for _, m := range wrkErrors.FindAllSubmatch(out, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return 0, err
		}
		errors += n
	}
	return errors, nil
}
