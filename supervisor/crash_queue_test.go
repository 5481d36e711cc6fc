package supervisor

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/account"
)

// crashes is how often a generation is killed with a full queue. BATON_CRASHES
// asks for more; `make faults` does.
func crashes(t *testing.T) int {
	text := os.Getenv("BATON_CRASHES")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("BATON_CRASHES=%q is not a number of crashes", text)
	}
	return n
}

// Connections that a generation has not accepted when it is killed are all served
// by its successor, which is started only then.
func TestQueueOfACrashedGeneration(t *testing.T) {
	const clients = 20
	n := serve(t, conf(t, "serve"))
	rounds, served := crashes(t), 0
	for round := range rounds {
		// Between two crashes something passes: else the next start would wait.
		if res := n.release(n.conf, Request{NoVerify: true}); res.Outcome != Passed {
			t.Fatalf("round %d: %+v", round+1, res)
		}
		g := n.current()
		eventually(t, "probes are accepted", func() bool {
			q, err := n.s.queueLengths(g.sockets)
			return err == nil && q == account.QueueLengths{}
		})
		freeze(t, g)
		type answer struct {
			text string
			err  error
		}
		answers := make(chan answer, clients)
		for range clients {
			go func() {
				text, err := patientGet(n.addr)
				answers <- answer{text, err}
			}()
		}
		eventually(t, "all clients wait in its queue", func() bool {
			q, err := n.s.queueLengths(g.sockets)
			return err == nil && q.ToAccept == clients
		})
		syscall.Kill(g.process.PID, syscall.SIGKILL)
		for range clients {
			a := <-answers
			if id, err := strconv.ParseUint(a.text, 10, 64); a.err != nil || err != nil || id <= g.id {
				t.Errorf("round %d: a client of generation %d was answered %q, %v", round+1, g.id, a.text, a.err)
				continue
			}
			served++
		}
		eventually(t, "the successor's release has ended", func() bool {
			st := n.s.Status()
			return st.Current > g.id && st.Release == nil
		})
	}
	t.Logf("%d crashes: %d of %d queued connections served by the successor", rounds, served, rounds*clients)
}

// current is the generation that serves.
func (n *node) current() *generation {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	return n.s.shift.current
}

// freeze stops a generation's process: from then on it accepts nothing.
func freeze(t *testing.T, g *generation) {
	t.Helper()
	syscall.Kill(g.process.PID, syscall.SIGSTOP)
	eventually(t, "it has stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", g.process.PID))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
}

// patientGet asks who serves, and waits for the answer as long as a test may.
func patientGet(addr string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
