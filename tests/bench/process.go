package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// child is a process that this one started.
type child struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it has been waited for
}

// startChild starts cmd; what it prints goes to the end of the file log.
func startChild(cmd *exec.Cmd, log string) (*child, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the process has its own copy
	cmd.Stdout, cmd.Stderr = f, f
	// An interrupt from the terminal is for this process, which stops the child in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd, log, make(chan struct{})}
	go func() { cmd.Wait(); close(c.ended) }()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// signal sends a signal; a process that has ended is an error.
func (c *child) signal(s os.Signal) error {
	select {
	case <-c.ended:
		return fmt.Errorf("%s ended: %v\n%s", c.cmd.Path, c.cmd.ProcessState, c.logTail())
	default:
		return c.cmd.Process.Signal(s)
	}
}

// wait returns when the process has ended, which it must within the time.
func (c *child) wait(atMost time.Duration) error {
	select {
	case <-c.ended:
		return nil
	case <-time.After(atMost):
		return fmt.Errorf("%s (%d) did not end in %v\n%s", c.cmd.Path, c.pid(), atMost, c.logTail())
	}
}

// stop ends the process: by SIGTERM, and if that takes too long for good.
func (c *child) stop() error {
	c.cmd.Process.Signal(syscall.SIGTERM)
	err := c.wait(20 * time.Second)
	if err != nil {
		c.cmd.Process.Kill()
		<-c.ended
	}
	return err
}

// cpu is what the process used; it must have ended.
func (c *child) cpu() time.Duration { return cpuOf(c.cmd.ProcessState) }

func cpuOf(s *os.ProcessState) time.Duration { return s.UserTime() + s.SystemTime() }

func (c *child) logTail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// usage is what processes have used and what they hold.
type usage struct {
	cpu      time.Duration // with that of their children that have ended
	rss, pss int64         // bytes; a page that n processes share is 1/n in pss
	count    int
}

// tick is the unit of CPU time in /proc, on every architecture of Linux.
const tick = 10 * time.Millisecond

// treeUsage sums up the processes whose ids are given and their descendants.
func treeUsage(roots ...int) (usage, error) {
	cpu, pids, err := treeCPU(roots...)
	sum := usage{cpu: cpu}
	for _, pid := range pids {
		// One that has ended meanwhile has no memory.
		if m, err := memory(pid); err == nil {
			sum.rss += m.rss
			sum.pss += m.pss
			sum.count++
		}
	}
	return sum, err
}

// treeCPU is the CPU time of the processes whose ids are given and of their
// descendants, and which they are.
func treeCPU(roots ...int) (cpu time.Duration, pids []int, err error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, nil, err
	}
	children, spent := make(map[int][]int), make(map[int]time.Duration)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended; its parent has its time
		}
		pid, parent, cpu, err := parseStat(b)
		if err != nil {
			return 0, nil, fmt.Errorf("%s: %w", path, err)
		}
		children[parent], spent[pid] = append(children[parent], pid), cpu
	}
	for todo := roots; len(todo) > 0; {
		pid := todo[len(todo)-1]
		todo = append(todo[:len(todo)-1:len(todo)-1], children[pid]...)
		cpu, pids = cpu+spent[pid], append(pids, pid)
	}
	return cpu, pids, nil
}

// parseStat reads /proc/PID/stat, see proc_pid_stat(5).
func parseStat(b []byte) (pid, parent int, cpu time.Duration, err error) {
	// The name may hold anything, even parentheses.
	first, last := bytes.IndexByte(b, ' '), bytes.LastIndexByte(b, ')')
	if first < 0 || last < 0 {
		return 0, 0, 0, errors.New("no name in it")
	}
	fields := strings.Fields(string(b[last+1:])) // from the third on
	if len(fields) < 15 {
		return 0, 0, 0, fmt.Errorf("%d fields after the name", len(fields))
	}
	number := func(text string) (n int) {
		n, e := strconv.Atoi(text)
		err = cmp.Or(err, e)
		return n
	}
	pid, parent = number(string(b[:first])), number(fields[1])
	for _, f := range fields[11:15] { // utime, stime, and those of children waited for
		cpu += time.Duration(number(f)) * tick
	}
	return pid, parent, cpu, err
}

func memory(pid int) (usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return usage{}, err
	}
	var u usage
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return usage{}, err
		}
		switch f[0] {
		case "Rss:":
			u.rss = kb << 10
		case "Pss:":
			u.pss = kb << 10
		}
	}
	return u, nil
}

// othersBusy is the share of the machine's CPU time that is used in the time
// given, in percent. Asked while nothing is measured, it is what others take.
func othersBusy(during time.Duration) (float64, error) {
	busy, all, err := machineTime()
	if err != nil {
		return 0, err
	}
	time.Sleep(during)
	busy2, all2, err := machineTime()
	if err != nil {
		return 0, err
	}
	return 100 * float64(busy2-busy) / float64(max(1, all2-all)), nil
}

func machineTime() (busy, all int64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	// cpu user nice system idle iowait irq softirq steal; guest time is in user's.
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0, 0, fmt.Errorf("/proc/stat: %q", line)
	}
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		all += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return busy, all, nil
}
