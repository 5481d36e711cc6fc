package proxy_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/need"
)

// replace swaps generations under a command until it has ended, and checks that
// nothing was cut.
func (n *node) replace(cmd *exec.Cmd, next func(old *node) *node) (output string, generations int) {
	n.t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for current := n; ; generations++ {
		select {
		case err := <-ended:
			if err != nil {
				n.t.Errorf("%s: %v\n%s", cmd, err, out.String())
			}
			return out.String(), generations
		case <-time.After(200 * time.Millisecond): // of load for each generation
			old := current
			current = next(old)
			old.term()
			old.drained(nothing)
		}
	}
}

// h2load does not connect again once it has been told to go: it gives up the
// requests it has not begun. Those it has begun must be answered.
func TestH2loadGetsAnAnswerToEachRequestInADrain(t *testing.T) {
	h2load := need.Tool(t, "h2load", "nghttp2-client")
	var served atomic.Int64
	web := origin(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(5 * time.Millisecond) // paces the client
		served.Add(1)
		hello(w, r)
	})
	eachFlavour(t, func(t *testing.T, f flavour) {
		served.Store(0)
		n := start(t, web, "", f.config...)
		out, generations := n.replace(exec.Command(h2load, "-n", "100000", "-c", "8", "-m", "4", f.scheme+"://"+n.web+"/"),
			func(old *node) *node { return old.successor(web, "", f.config...) })
		want := fmt.Sprintf("status codes: %d 2xx, 0 3xx, 0 4xx, 0 5xx", served.Load())
		if served.Load() == 0 || generations == 0 || !strings.Contains(out, want) || !strings.Contains(out, " 0 timeout") {
			t.Errorf("in %d generations: want %s, got\n%s", generations, want, out)
		}
	})
}

func TestCurlSeesNoFailureOverGenerations(t *testing.T) {
	curl := need.Tool(t, "curl", "curl")
	web := origin(t, count)
	upload := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(upload, make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(selfSigned().Certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name     string
		f        flavour
		arg      string
		requests int
		want     string // each time
	}{
		{"h2", flavours[0], "--http2", 10, "got 100000 2\n"},
		// This curl 7.88 fails the second request on such a connection by itself.
		{"h2c", flavours[1], "--http2-prior-knowledge", 1, "got 100000 2\n"},
		{"h1 over TLS", flavours[0], "--http1.1", 10, "got 100000 1.1\n"},
		{"h1", flavours[1], "--http1.1", 10, "got 100000 1.1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := start(t, web, "", test.f.config...)
			args := []string{"--silent", "--show-error", "--fail", "--max-time", "20", "--cacert", ca,
				"--data-binary", "@" + upload, "--rate", "36000/h", "--write-out", " %{http_version}\n", test.arg}
			for range test.requests {
				args = append(args, test.f.scheme+"://"+n.web+"/")
			}
			out, _ := n.replace(exec.Command(curl, args...),
				func(old *node) *node { return old.successor(web, "", test.f.config...) })
			if want := strings.Repeat(test.want, test.requests); out != want {
				t.Errorf("got\n%swant\n%s", out, want)
			}
		})
	}
}
