package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"
)

// Throughput is what wrk got through a peer, in pairs of runs: one of the steady
// state and one in which the peer is replaced every second.
type Throughput struct {
	Steady Figure `json:"steady_per_s"`
	During Figure `json:"during_per_s"`
	// Share is During of Steady in the same pair, in percent.
	Share Figure `json:"share_percent"`
	// CPU is what the peer's processes used for each request, in µs.
	CPU       Figure `json:"cpu_steady_us"`
	CPUDuring Figure `json:"cpu_during_us"`
	// Errors and ErrorsSteady are what wrk counted in all runs of a kind.
	Errors       int `json:"errors"`
	ErrorsSteady int `json:"errors_steady"`
}

const (
	connections = 32
	every       = time.Second // between two replacements
)

// window is one run of wrk.
type window struct {
	perSecond float64
	cpu       float64 // µs for each request
	errors    int
}

// addPair runs wrk twice, steady and replacing, and adds what it found. With
// fresh every request has a connection of its own. The two change places from
// round to round, so that a machine that slows down favours neither.
func (t *Throughput) addPair(ctx context.Context, r *running, fresh bool, seconds, round int) error {
	return t.pair(round, func(replacing bool) (window, error) { return r.wrk(ctx, fresh, seconds, replacing) })
}

func (t *Throughput) pair(round int, run func(replacing bool) (window, error)) error {
	var pair [2]window // steady, during
	for i := range pair {
		which := (i + round) % 2
		var err error
		if pair[which], err = run(which == 1); err != nil {
			return err
		}
	}
	steady, during := pair[0], pair[1]
	t.Steady.add(steady.perSecond)
	t.During.add(during.perSecond)
	t.Share.add(100 * during.perSecond / steady.perSecond)
	t.CPU.add(steady.cpu)
	t.CPUDuring.add(during.cpu)
	t.ErrorsSteady += steady.errors
	t.Errors += during.errors
	return nil
}

func (r *running) wrk(ctx context.Context, fresh bool, seconds int, replacing bool) (window, error) {
	args := []string{"-t1", fmt.Sprintf("-c%d", connections), fmt.Sprintf("-d%ds", seconds)}
	if fresh {
		args = append(args, "-H", "Connection: close")
	}
	before, err := r.usage()
	if err != nil {
		return window{}, err
	}
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	done := make(chan error, 1)
	go func() {
		if !replacing {
			done <- nil
			return
		}
		done <- r.replaceUntil(ctx, end)
	}()
	out, err := exec.CommandContext(ctx, "wrk", append(args, "http://"+r.site.Web+"/small?seed=1")...).CombinedOutput()
	if replaceErr := <-done; err == nil {
		err = replaceErr
	}
	if err != nil {
		return window{}, fmt.Errorf("wrk on %s: %w\n%s", r.name, err, out)
	}
	after, err := r.usage()
	if err != nil {
		return window{}, err
	}
	requests, took, errors, err := parseWrk(out)
	if err != nil {
		return window{}, err
	}
	return window{
		perSecond: float64(requests) / took.Seconds(),
		cpu:       float64((after.cpu - before.cpu).Microseconds()) / float64(requests),
		errors:    errors,
	}, nil
}

// replaceUntil replaces every second, first after half of one, so that each
// replacement ends before the end.
func (r *running) replaceUntil(ctx context.Context, end time.Time) error {
	for next := time.Now().Add(every / 2); next.Before(end); next = next.Add(every) {
		if err := sleep(ctx, time.Until(next)); err != nil {
			return err
		}
		if time.Now().After(end) {
			break // the one before took that long
		}
		if _, err := r.replace(ctx); err != nil {
			return err
		}
	}
	return nil
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in ([\d.]+m?s)`)
	wrkErrors   = regexp.MustCompile(`(?m)(?:connect |read |write |timeout |responses: )(\d+)`)
)

func parseWrk(out []byte) (requests int, took time.Duration, errors int, err error) {
	m := wrkRequests.FindSubmatch(out)
	if m == nil {
		return 0, 0, 0, fmt.Errorf("wrk printed no number of requests:\n%s", out)
	}
	if requests, err = strconv.Atoi(string(m[1])); err != nil {
		return 0, 0, 0, err
	}
	if took, err = time.ParseDuration(string(m[2])); err != nil {
		return 0, 0, 0, err
	}
	if requests == 0 || took == 0 {
		return 0, 0, 0, fmt.Errorf("wrk got no answer:\n%s", out)
	}
	for _, m := range wrkErrors.FindAllSubmatch(out, -1) {
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return 0, 0, 0, err
		}
		errors += n
	}
	return requests, took, errors, nil
}
