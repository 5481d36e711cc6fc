package supervisor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
)

// The end of the supervisor meets a generation that drains and has not been told to stop
// yet. It is told once: a second SIGTERM would end what it is to finish.
func TestToldOnceWhenTheSupervisorEnds(t *testing.T) {
	n := serve(t, conf(t, "serve", func(c *config.Config) {
		c.Release.DrainTimeout, c.Release.Linger = time.Minute, time.Minute
	}))
	signals := filepath.Join(n.conf.RuntimeDir, "signals")
	if err := os.WriteFile(signals, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(signals, 0o666); err != nil { // whatever the umask
		t.Fatal(err)
	}
	if res := n.release(n.like("counts-signals"), Request{NoVerify: true}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	conn, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := ask(conn, "/"); got != "2" {
		t.Fatalf("%q, %v", got, err)
	}
	if res := n.release(n.like("serve"), Request{NoVerify: true}); res.Outcome != Passed {
		t.Fatalf("%+v", res)
	}
	eventually(t, "it drains", func() bool { g := n.generation(2); return g != nil && g.State == Draining })
	n.stop()
	got, err := os.ReadFile(signals)
	if lines := strings.Count(string(got), "TERM"); err != nil || lines != 1 {
		t.Errorf("it was told %d times, %v", lines, err)
	}
}

// The last call is a second SIGTERM. It waits until the first has been heard.
func TestLastCallWaitsUntilTheStopWasHeard(t *testing.T) {
	ours := func() *generation {
		return &generation{recipe: &recipe{config: &config.Config{Proxy: config.Proxy{Baton: true}}}, toldAt: time.Now()}
	}
	said, long, foreign := ours(), ours(), ours()
	said.stops, long.toldAt, foreign.recipe.config.Proxy.Baton = true, time.Now().Add(-hearMost), false
	for name, c := range map[string]struct {
		g    *generation
		want bool
	}{
		"told just now": {ours(), true}, "has said so": {said, false}, "had the time": {long, false},
		"another server": {foreign, false}, "a leftover": {&generation{toldAt: time.Now()}, false},
	} {
		if got := new(Supervisor).unheard(c.g); got != c.want {
			t.Errorf("%s: unheard is %v", name, got)
		}
	}
}
