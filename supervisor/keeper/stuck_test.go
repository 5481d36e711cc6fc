package keeper

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pidOf is the process that answers a client.
func pidOf(t *testing.T, c *Client) int {
	t.Helper()
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(c.pidfd))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if text, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("a pidfd without a process")
	return 0
}

// stop stops a process, and returns when each of its threads has stopped.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(threads, func(stat string) bool {
			text, _ := os.ReadFile(stat)
			return !strings.Contains(string(text), ") T ")
		}) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the keeper does not stop")
		}
	}
}

func impatient(t *testing.T) {
	was, wasAll := answerTimeout, allTimeout
	answerTimeout, allTimeout = 50*time.Millisecond, 50*time.Millisecond
	t.Cleanup(func() { answerTimeout, allTimeout = was, wasAll })
}

// The answer to a request that was given up is not taken for that of another.
func TestAnswerTooLate(t *testing.T) {
	c, path := start(t)
	if err := c.Put(map[string]int{"kept": memfd(t, "kept")}); err != nil {
		t.Fatal(err)
	}
	impatient(t)
	pid := pidOf(t, c)
	stop(t, pid)
	_, err := c.All()
	unix.Kill(pid, unix.SIGCONT)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a keeper that is stopped: %v", err)
	}
	answerTimeout, allTimeout = time.Minute, time.Minute
	if err := c.Drop([]string{"other"}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a request after that: %v", err)
	}
	again, err := Connect(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if all, err := again.All(); err != nil || len(all) != 1 {
		t.Errorf("a new connection: %v, %v", all, err)
	}
}

// A keeper that is stuck is ended, and its copies with it.
func TestKill(t *testing.T) {
	c, path := start(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if err := c.Put(map[string]int{"pipe": int(write.Fd())}); err != nil {
		t.Fatal(err)
	}
	write.Close()
	stop(t, pidOf(t, c))
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	read.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := read.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the keeper's copy is open: %d, %v", n, err)
	}
	next, err := Start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if all, err := next.All(); err != nil || len(all) != 0 {
		t.Errorf("the next keeper: %v, %v", all, err)
	}
}

// A keeper that does not answer is noticed although nobody asks it for anything.
func TestWatchEndsTheStuck(t *testing.T) {
	c, path := start(t)
	impatient(t)
	ended, never := make(chan struct{}), make(chan struct{})
	go func() { Watch(path, never); close(ended) }()
	stop(t, pidOf(t, c))
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("a keeper that is stopped is believed to live")
	}
	if err := c.Kill(); err != nil {
		t.Errorf("it has ended: %v", err)
	}
	if c, err := Connect(path); err == nil {
		c.Close()
		t.Error("it has not ended")
	}
}

// A keeper that cannot take a connection goes on holding what it has, and takes the
// connection when it can.
func TestServeOutlivesFailedAccepts(t *testing.T) {
	c, path := start(t)
	if err := c.Put(map[string]int{"kept": memfd(t, "kept")}); err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, c)
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 0
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	next, err := Connect(path) // accepted by the kernel
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for range 100 { // it tries, meanwhile
		if err := c.Drop([]string{"other"}); err != nil {
			t.Fatalf("it has ended: %v", err)
		}
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	if all, err := next.All(); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}
