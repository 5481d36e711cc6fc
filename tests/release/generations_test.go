package release

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestTenGenerations has a long stream on each of ten generations, all of which
// live: max_generations. The next release ends the oldest drain, says so, and
// touches no other.
func TestTenGenerations(t *testing.T) {
	const most = 10
	settings := demo.Settings{MaxGenerations: most, DrainTimeout: time.Hour}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	release := func() {
		t.Helper()
		if r, err := n.ReleaseUnwatched(t.Context(), file); err != nil || r.Outcome != "passed" {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	var streams []*stream
	for i := range most {
		if i > 0 {
			release()
		}
		streams = append(streams, openStream(t, n))
	}
	echo := func(all []*stream) {
		t.Helper()
		for i, s := range all {
			if err := s.echo(fmt.Sprintf("stream %d", i)); err != nil {
				t.Errorf("stream %d of %d: %v", i+1, len(all), err)
			}
		}
	}
	echo(streams)
	wantGenerations(t, n, 1, most)

	began := time.Now()
	release()
	t.Logf("a release at the cap took %v", time.Since(began).Round(time.Millisecond))
	wantGenerations(t, n, 2, most)
	if err := streams[0].echo("one more"); err == nil {
		t.Error("the stream of the generation that was ended goes on")
	}
	echo(streams[1:])
	if status, err := n.Status(t.Context()); err != nil || status.Drained.Ended != 1 || status.Drained.Cut != 1 {
		t.Errorf("%+v, %v; want one generation ended and one flow cut", status, err)
	}
	log, err := os.ReadFile(n.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`"msg":"too many generations: the oldest drain ends now","generation":1,"max_generations":%d`, most); !strings.Contains(string(log), want) {
		t.Errorf("the log does not say %s", want)
	}
	for _, s := range streams {
		s.Close() // so that the drains end, and the node with them
	}
}

// wantGenerations asks `baton generations` for so many in a row, of which the last
// serves and the others drain, each with the end of its drain.
func wantGenerations(t *testing.T, n *demo.Node, first, count int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), n.Executable(), "--socket", n.Socket(), "generations").CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != count+1 {
		t.Fatalf("%v, %d generations instead of %d:\n%s", err, len(lines)-1, count, out)
	}
	for i, line := range lines[1:] {
		f := strings.Fields(line) // GENERATION STATE SLOT PID AGE DRAIN-ENDS …
		state, drains := "draining", true
		if i == count-1 {
			state, drains = "serving", false
		}
		if len(f) < 6 || f[0] != fmt.Sprint(first+i) || f[1] != state || (f[5] != "-") != drains {
			t.Errorf("line %d is %q; want generation %d, %s", i+2, line, first+i, state)
		}
	}
}

// stream is a connection through the proxy to a server that echoes.
type stream struct{ net.Conn }

func openStream(t *testing.T, n *demo.Node) *stream {
	t.Helper()
	conn, err := net.DialTimeout("tcp", n.TCP.String(), node.Enough)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &stream{conn}
	if err := s.echo("first"); err != nil { // a generation has it
		t.Fatal(err)
	}
	return s
}

func (s *stream) echo(text string) error {
	s.SetDeadline(time.Now().Add(node.Enough))
	if _, err := io.WriteString(s, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(s, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back as %q", text, got)
	}
	return nil
}
