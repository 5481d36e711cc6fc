package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/guard"
	"github.com/baton-mesh/baton/proxy/config"
)

// Two generations share the new flows; one is hostile. Whatever it tries, the
// flows of the other are served as before.
func TestHostileGeneration(t *testing.T) {
	for name, e := range escapes {
		t.Run(name, func(t *testing.T) {
			n := serve(t, conf(t, "serve"))
			r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Minute }), Request{Ramp: []config.Percent{0.5, 1}})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "two generations share the new flows", func() bool {
				st := n.s.Status()
				return st.Release != nil && st.Release.Weight == 0.5
			})
			victims := n.keepAlive(t, "1", 8)
			hostile := n.keepAlive(t, "2", 1)[0]

			if got := hostile.tryEscape(t, n, name); got != e.want {
				t.Errorf("answered %v, want %v", got, e.want)
			}

			for i, v := range victims {
				if got, err := v.get("/"); err != nil || got != "1" {
					t.Errorf("connection %d of the other generation: %q, %v", i, got, err)
				}
			}
			served := map[string]int{}
			for range 40 {
				// Its own flows may suffer; a client that drew it gives up soon.
				got, err := n.try(100 * time.Millisecond)
				if err != nil {
					got = "failed"
				}
				served[got]++
			}
			switch {
			case served["1"] < 5:
				t.Errorf("new flows: %v; generation 1 must have about half of 40, or all", served)
			case e.leaves && served["failed"] > 0:
				t.Errorf("new flows: %v; those of the hostile one had the other to go to", served)
			case !e.leaves && served["2"] < 5:
				t.Errorf("new flows: %v; generation 2 must still have about half", served)
			}
			if e.leaves {
				<-r.done
				if r.result.Outcome != RolledBack || n.s.Status().Current != 1 {
					t.Errorf("release: %+v", r.result)
				}
			}
			n.wantRefused(t, 1, e.refused)
			if !e.leaves {
				if res, err := n.s.Rollback(t.Context()); err != nil || res.Outcome != RolledBack {
					t.Errorf("roll back: %+v, %v", res, err)
				}
			}
			for range 20 {
				if got, err := n.get("/"); err != nil || got != "1" {
					t.Errorf("after going back: %q, %v", got, err)
				}
			}
		})
	}
}

// Closing is not seen by the kernel, for the supervisor has copies: flows that
// drew the hostile one wait, and are served when the copies are closed.
func TestCandidateClosesItsSockets(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	r, err := n.enqueue(n.like("serve", func(c *config.Config) { c.Release.Verify.Window = time.Minute }), Request{Ramp: []config.Percent{0.5, 1}})
	if err != nil {
		t.Fatal(err)
	}
	hostile := n.keepAlive(t, "2", 1)[0]
	if got := hostile.tryEscape(t, n, "close"); got != 0 {
		t.Fatalf("close: %v", got)
	}
	answers := make(chan error, 40)
	for range cap(answers) {
		go func() {
			got, err := n.get("/")
			if err == nil && got != "1" {
				err = fmt.Errorf("served by %q", got)
			}
			answers <- err
		}()
	}
	for range cap(answers) {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if <-r.done; r.result.Outcome != RolledBack || !strings.Contains(r.result.Reason, "given up 1 of its listening sockets") {
		t.Errorf("release: %+v", r.result)
	}
}

// With no other to take the flows, they wait for the one that is started in its place.
func TestServingGenerationGivesUp(t *testing.T) {
	for _, name := range []string{"shut its socket down", "disconnect its socket", "shut down and listen anew", "close"} {
		t.Run(name, func(t *testing.T) {
			n := serve(t, conf(t, "serve"))
			stop := n.load()
			defer stop()
			if got := n.keepAlive(t, "1", 1)[0].tryEscape(t, n, name); got != 0 {
				t.Fatalf("answered %v", got)
			}
			eventually(t, "its successor serves", func() bool { return n.s.Status().Current == 2 })
			eventually(t, "it has ended", func() bool { return n.generation(1) == nil })
			if r := n.s.Results(); len(r) != 2 || r[1].Cause != "crash" || r[1].Outcome != Passed {
				t.Errorf("releases: %+v", r)
			}
			// What it had not accepted when it stopped listening is reset: there
			// was nobody to hand it on to. The load has four clients, so four at most.
			lost := int64(4)
			if name == "close" {
				lost = 0 // our copies kept the queue
			}
			if ok, failed := stop(); failed > lost || ok == 0 {
				t.Errorf("%d requests answered, %d failed", ok, failed)
			}
			if !strings.Contains(n.log.String(), "gave up listening sockets") {
				t.Error("the log does not say why")
			}
		})
	}
}

// A generation that is merely slow holds its sockets and is left alone.
func TestSlowIsNotGone(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	g := n.s.generations[0]
	all := stalls{}
	readings := 0
	for range 10 * (stalledFor + 1) {
		if all.stalled(g, g.sockets["web"][0].Cookie, 5) {
			readings++
		}
	}
	if readings != 10 {
		t.Errorf("looked closer %d times in 30 readings, want 10", readings)
	}
	if held, err := n.s.holdsSocket(g, n.conf.Listeners[0], g.sockets["web"][0]); !held || err != nil {
		t.Errorf("it holds its socket: %v, %v", held, err)
	}
}

// READY=1 counts for who sends it.
func TestReadyFromAnotherGeneration(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	hostile := n.keepAlive(t, "1", 1)[0]
	r, err := n.enqueue(n.like("mute", func(c *config.Config) { c.Release.ReadyTimeout = time.Second }), Request{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the candidate has started", func() bool { return n.generation(2) != nil })
	if got := hostile.tryEscape(t, n, "ready"); got != 0 {
		t.Errorf("notify: %v", got)
	}
	if <-r.done; r.result.Outcome != Refused || !strings.Contains(r.result.Reason, "was not ready") {
		t.Errorf("release: %+v", r.result)
	}
}

// What a generation is given to read it cannot change: its successor may be
// given the same.
func TestConfigurationIsSealed(t *testing.T) {
	fd, err := configFD(conf(t, "serve"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// A descriptor of one's own, opened anew for writing, as a generation could.
	again, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	for what, do := range map[string]func() error{
		"write":    func() error { _, err := unix.Pwrite(again, []byte("x"), 0); return err },
		"truncate": func() error { return unix.Ftruncate(again, 0) },
		"grow":     func() error { return unix.Ftruncate(again, 1<<20) },
		"punch": func() error {
			return unix.Fallocate(again, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		},
		"map": func() error {
			_, err := unix.Mmap(again, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		},
		"seal": func() error { _, err := unix.FcntlInt(uintptr(again), unix.F_ADD_SEALS, unix.F_SEAL_EXEC); return err },
	} {
		if err := do(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
}

// wantRefused checks that the guard counted this option once for the slot, and nothing else.
func (n *node) wantRefused(t *testing.T, slot int, o guard.Option) {
	t.Helper()
	var want []SlotRefusals
	if o != uncounted {
		want = []SlotRefusals{{Slot: slot, Options: map[string]uint64{o.String(): 1}}}
	}
	if got := n.s.Status().Guard; !got.Active || fmt.Sprint(got.Refused) != fmt.Sprint(want) {
		t.Errorf("guard: %+v, want refused %v", got, want)
	}
}

// A client keeps one connection.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

// keepAlive makes connections until so many have drawn that generation.
func (n *node) keepAlive(t *testing.T, generation string, many int) (all []*client) {
	t.Helper()
	eventually(t, "connections to generation "+generation, func() bool {
		conn, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		c := &client{conn, bufio.NewReader(conn)}
		if got, err := c.get("/"); err == nil && got == generation {
			all = append(all, c)
		}
		return len(all) == many
	})
	return all
}

func (c *client) get(path string) (string, error) {
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// try asks on a new connection, and waits no longer than that.
func (n *node) try(patience time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp", n.addr, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, "/")
}

// tryEscape lets the generation behind the connection try, and returns what the
// kernel answered it.
func (c *client) tryEscape(t *testing.T, n *node, name string) syscall.Errno {
	t.Helper()
	answer, err := os.CreateTemp(filepath.Dir(n.conf.RuntimeDir), "answer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(answer.Name())
	defer answer.Close()
	if err := answer.Chmod(0o666); err != nil {
		t.Fatal(err)
	}
	given := url.Values{"answer": {answer.Name()}, "victim": {strconv.Itoa(n.generation(1).PID)}, "pins": {pinsOf(n)}, "dir": {n.conf.RuntimeDir}, "marker": {childMarker(n)}}
	go c.get("/try/" + url.PathEscape(name) + "?" + given.Encode())
	var text []byte
	eventually(t, "the generation has tried", func() bool {
		text, _ = os.ReadFile(answer.Name())
		return strings.HasSuffix(string(text), "\n")
	})
	errno, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return syscall.Errno(errno)
}
