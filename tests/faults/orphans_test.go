package faults

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// reapOrphans makes this process the one that a supervisor's children go to, and
// that sees to it that nothing is left of them, as init does.
func reapOrphans(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) })
}

// The only generation dies while there is no supervisor. Who connects then waits
// at a socket that the keeper alone has, and is answered when somebody serves.
func TestSupervisorAndGenerationKilled(t *testing.T) {
	for _, mode := range []string{"bpf", "takeover"} {
		t.Run(mode, func(t *testing.T) {
			n := node.Start(t, demo.Place{}, demo.Settings{Steering: mode})
			reapOrphans(t)
			pid := status(t, n).Generations[0].PID
			n.Kill()
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
				t.Fatal(err)
			}

			client, err := net.DialTimeout("tcp", n.HTTP.String(), 30*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(time.Minute))
			if _, err := fmt.Fprintf(client, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", n.HTTP); err != nil {
				t.Fatal(err)
			}
			if err := n.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				t.Errorf("answered %s", answer.Status)
			}
		})
	}
}
