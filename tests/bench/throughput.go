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
// within one run of theirs. What is in percent compares a second with the mean of two
// others, the one before and the one after, so a machine that becomes slower or
// faster meanwhile favours none.
type Throughput struct {
	Steady Figure `json:"steady_per_s"` // of the seconds in which nothing happens
	During Figure `json:"during_per_s"` // of those in which the peer is replaced once
	// Share is a second with a replacement, compared with the steady ones beside.
	Share Figure `json:"share_percent"`
	// Control is the same of a second in which nothing happens either: how far
	// Share goes astray by itself.
	Control Figure `json:"control_percent"`
	// After is the steady second after one with a replacement, compared with the
	// steady ones that have none before them: whether the dip is longer than a second.
	After Figure `json:"after_percent"`
	// CPU is what the peer's processes used for each request, in µs.
	CPU       Figure `json:"cpu_steady_us"`
	CPUDuring Figure `json:"cpu_during_us"`
	// Errors is what the clients counted in all runs.
	Errors int `json:"errors"`
}

const (
	connections = 32
	every       = time.Second      // what is counted together
	warmUp      = every            // of clients, before the first that counts
	runAtMost   = 15 * time.Minute // of clients whose end nobody asks for
)

// second is what one of them is for.
type second int

const (
	steady   second = iota // nothing happens; what the others are compared with
	replaced               // the peer is replaced as it begins
	control                // nothing happens either
)

// period is what a run repeats after one steady second: each of the other two stands
// between two that are steady.
var period = [...]second{replaced, steady, control, steady}

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

// run has clients run while the peer is replaced so many times, and adds what it found.
func (t *Throughput) run(ctx context.Context, s subject, replacements int) error {
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
	counted, err := s.seconds(ctx, replacements)
	stop()
	end := <-ended
	t.Errors += end.errors
	if err := errors.Join(err, end.err); err != nil {
		return err
	}
	t.add(counted)
	return nil
}

// count is what a second has brought.
type count struct {
	kind      second
	perSecond float64
	cpu       float64 // µs for each request
}

func (s subject) seconds(ctx context.Context, replacements int) (all []count, err error) {
	if err := sleep(ctx, warmUp); err != nil {
		return nil, err
	}
	return all, inOrder(replacements, func(kind second) error {
		c := count{kind: kind}
		var err error
		c.perSecond, c.cpu, err = s.measure(ctx, kind == replaced)
		all = append(all, c)
		return err
	})
}

// inOrder measures so many periods.
func inOrder(periods int, measure func(second) error) error {
	err := measure(steady)
	for range periods {
		for _, kind := range period {
			if err == nil {
				err = measure(kind)
			}
		}
	}
	return err
}

// add takes the seconds of one run.
func (t *Throughput) add(all []count) {
	// beside compares the second i with those at a distance.
	beside := func(i, distance int) float64 {
		return 200 * all[i].perSecond / (all[i-distance].perSecond + all[i+distance].perSecond)
	}
	for i, c := range all {
		switch c.kind {
		case steady:
			t.Steady.add(c.perSecond)
			t.CPU.add(c.cpu)
		case replaced:
			t.During.add(c.perSecond)
			t.CPUDuring.add(c.cpu)
			t.Share.add(beside(i, 1))
			if i > 1 { // what a run begins with has caches that are cold
				t.After.add(beside(i+1, 2))
			}
		case control:
			t.Control.add(beside(i, 1))
		}
	}
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
