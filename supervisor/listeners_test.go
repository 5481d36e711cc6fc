package supervisor

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// manyListeners is how many there are in the tests of many: more than are asked
// for an answer. BATON_TEST_LISTENERS asks for as many as one likes, and for the
// figures; `make listeners` does.
func manyListeners(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("BATON_TEST_LISTENERS")); err == nil {
		return n
	}
	return askedMost + 72
}

// onePort puts n listeners on loopback addresses with one port.
func onePort(t *testing.T, n int) func(*config.Config) {
	port := lowPort(t)
	return func(c *config.Config) {
		c.Listeners = nil
		for i := range n {
			c.Listeners = append(c.Listeners, config.Listener{
				Name: fmt.Sprintf("l%d", i), Address: fmt.Sprintf("127.1.%d.%d:%d", i/250, 1+i%250, port), Protocol: config.HTTP,
				Workers: 1, WorkerChoice: config.ByHash, Backlog: 1024,
			})
		}
		c.Release.ReadyTimeout = time.Minute
	}
}

// lowPort is free on every address, and the kernel gives it to no client.
func lowPort(t *testing.T) int {
	for {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}

// Thousands of listeners on one port: each release moves all of them, and none
// of the requests on the way fails.
func TestManyListenersOnOnePort(t *testing.T) {
	count := manyListeners(t)
	began := time.Now()
	n := serve(t, conf(t, "serve", onePort(t, count)))
	t.Logf("%d listeners: start %v", count, time.Since(began).Round(time.Millisecond))
	stop := n.load() // on the first
	for gen := 2; gen <= 3; gen++ {
		began = time.Now()
		res := n.release(n.conf, Request{NoVerify: gen == 2})
		t.Logf("release %v, of this %+v", time.Since(began).Round(time.Millisecond), res.Stages)
		if res.Outcome != Passed {
			t.Fatalf("%+v", res)
		}
		said := strings.Join(res.Evidence, "\n")
		if asked, others := min(count, askedMost), count-askedMost; !strings.Contains(said, fmt.Sprintf("%d probes answered on %d listeners", probesEach*asked, asked)) ||
			others > 0 && !strings.Contains(said, fmt.Sprintf("accepted on each of the other %d listeners", others)) {
			t.Errorf("evidence: %s", said)
		}
		n.allAnswer(strconv.Itoa(gen))
		eventually(t, "the old one ends", func() bool { return len(n.s.Status().Generations) == 1 })
	}
	if ok, failed := stop(); ok == 0 || failed > 0 {
		t.Errorf("%d requests failed, %d did not", failed, ok)
	}
	began = time.Now()
	n.stop()
	t.Logf("stop %v", time.Since(began).Round(time.Millisecond))
}

// allAnswer asks every listener who serves.
func (n *node) allAnswer(want string) {
	n.t.Helper()
	var wrong atomic.Int64
	var askers sync.WaitGroup
	next := make(chan string)
	for range 8 {
		askers.Go(func() {
			for addr := range next {
				got := ""
				conn, err := net.DialTimeout("tcp", addr, 30*time.Second)
				if err == nil {
					got, err = ask(conn, "/")
					conn.Close()
				}
				if got != want && wrong.Add(1) < 10 {
					n.t.Errorf("%s: %q, %v; want %q", addr, got, err, want)
				}
			}
		})
	}
	for _, l := range n.conf.Listeners {
		next <- l.Address
	}
	close(next)
	askers.Wait()
}

// A listener may have the address and port that a probe came from: what is left
// of it waits for a minute.
func TestProbeLeavesItsPortToListeners(t *testing.T) {
	n := serve(t, conf(t, "serve"))
	to := n.conf.Listeners[0].AddrPort()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	from, err := claimSource(fd, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	unix.Shutdown(fd, unix.SHUT_WR) // the first to close is left in TIME_WAIT
	unix.Read(fd, make([]byte, 1))
	unix.Close(fd)
	s, err := steer.OpenTakeover(&config.Config{Listeners: []config.Listener{{Name: "new", Address: from.String()}}}, nil, nil, n.s.log)
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Errorf("listen on %s: %v", from, err)
	}
}

// One listening socket of a candidate is shut: the connection that was meant for
// it goes to another generation, and the probe tells.
func TestReachMissesAShutListener(t *testing.T) {
	n := serve(t, conf(t, "serve", onePort(t, 3)))
	by := n.s.steering.(*steer.BPF)
	g := n.s.serving()[0]
	if err := n.s.reachAll(t.Context(), by, g, n.conf.Listeners); err != nil {
		t.Fatal(err)
	}
	unix.Shutdown(g.sockets["l1"][0].FD, unix.SHUT_RD)
	err := n.s.reachAll(t.Context(), by, g, n.conf.Listeners)
	if want := "2 of 3 connections reached the candidate"; err == nil || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestSampleTakesSomeOfEachProtocol(t *testing.T) {
	var all []config.Listener
	for i := range 3000 {
		l := config.Listener{Name: strconv.Itoa(i), Protocol: config.HTTP}
		switch {
		case i == 17:
			l.Protocol = config.HTTPS
		case i%3 == 0:
			l.Protocol = config.TCP
		}
		all = append(all, l)
	}
	asked, reached := sample(all)
	if len(asked)+len(reached) != len(all) || len(asked) < askedMost || len(asked) > askedMost+1 {
		t.Errorf("%d asked and %d reached of %d", len(asked), len(reached), len(all))
	}
	of := map[config.Protocol]int{}
	for _, l := range asked {
		of[l.Protocol]++
	}
	if of[config.HTTPS] != 1 || of[config.HTTP] < 10 || of[config.TCP] < 10 {
		t.Errorf("asked by protocol: %v", of)
	}
	if asked, reached := sample(all[:askedMost]); len(asked) != askedMost || reached != nil {
		t.Errorf("of %d listeners %d are asked", askedMost, len(asked))
	}
	// A datagram has no connection either: one that was meant to reach its
	// listener would be refused.
	for i := range all {
		all[i].Protocol = config.UDP
	}
	if asked, reached := sample(all); len(asked)+len(reached) != 0 {
		t.Errorf("of UDP %d are asked and %d reached", len(asked), len(reached))
	}
}
