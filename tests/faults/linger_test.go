package faults

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/admin"
	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// A generation that lingers gets nothing new and has no slot any more. A supervisor that
// adopts it gives it none, which the kernel would refuse for as long as the socket is in
// its table; who is connected to it stays, and when they have left it ends.
func TestLingeringIsAdopted(t *testing.T) {
	t.Setenv("BATON_RELEASE_LINGER", "1h")
	n := node.Start(t, demo.Place{}, demo.Settings{})
	conn, err := net.Dial("tcp", n.HTTP.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func() (generation string) {
		t.Helper()
		conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: test\r\nBaton-Probe: 1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := new(bytes.Buffer).ReadFrom(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.Header.Get("Baton-Generation")
	}
	if g := ask(); g != "1" {
		t.Fatalf("answered by generation %q", g)
	}
	file, err := n.WriteConfig("candidate", demo.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	node.Eventually(t, "the first generation lingers", func() bool {
		st, err := admin.Dial(n.Socket()).Status(t.Context())
		return err == nil && len(st.Generations) == 2 && time.Until(st.Generations[0].Deadline) > 30*time.Minute
	})
	n.Kill()
	before, err := os.ReadFile(n.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(n.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(log[len(before):]) {
		if bytes.Contains(line, []byte(`"level":"ERROR"`)) {
			t.Errorf("it adopts, and says: %s", line)
		}
	}
	if st := status(t, n); len(st.Generations) != 2 || st.Current != 2 {
		t.Errorf("%+v", st)
	}
	if g := ask(); g != "1" {
		t.Errorf("answered by generation %q", g)
	}
	conn.Close()
	node.Eventually(t, "the first generation has ended", func() bool { return len(status(t, n).Generations) == 1 })
}
