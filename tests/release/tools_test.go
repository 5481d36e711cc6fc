package release

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/baton-mesh/baton/tests/need"
)

// A tool is somebody else's client: it shares no mistake with those of package
// demo. It runs again and again, each time for a few seconds at most.
type tool struct {
	name string // of the program, and of its Debian package unless pkg says otherwise
	pkg  string
	args func(t *testing.T, url string) []string
	// read takes what a run printed and returns how many requests it made, or
	// why it must count as failed.
	read func(out []byte) (requests int, err error)
}

var tools = []tool{
	{
		// One URL each: given several, curl sends a request again that met a
		// connection which had been closed.
		name: "curl",
		args: func(_ *testing.T, url string) []string {
			return []string{"--silent", "--show-error", "--fail", "--max-time", "10", url + slowPath(300, curlKiB)}
		},
		read: sameBody(curlKiB << 10),
	},
	{
		name: "wrk",
		args: func(t *testing.T, url string) []string {
			// Paced, since a proxy and its clients share the machine. The pause also
			// leaves connections idle, where a close without notice is an error.
			script := filepath.Join(t.TempDir(), "pause.lua")
			if err := os.WriteFile(script, []byte("function delay() return 20 end\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			return []string{"--threads", "1", "--connections", "4", "--duration", "3s", "--script", script, url + "/small?seed=1"}
		},
		read: readWrk,
	},
	{
		// Paced by a slow answer: with --rps, h2load 1.52 stands still once a
		// connection was closed.
		name: "h2load",
		pkg:  "nghttp2-client",
		args: func(_ *testing.T, url string) []string {
			return []string{"--h1", "--clients", "4", "--requests", "100", url + slowPath(50, 1)}
		},
		read: readH2load,
	},
}

func slowPath(ms, kb int) string { return fmt.Sprintf("/slow?seed=1&ms=%d&kb=%d", ms, kb) }

const curlKiB = 16

// sameBody expects that many bytes, and the same each time.
func sameBody(size int) func([]byte) (int, error) {
	var first [sha256.Size]byte
	known := false
	return func(out []byte) (int, error) {
		sum := sha256.Sum256(out)
		if len(out) != size || known && sum != first {
			return 0, fmt.Errorf("%d bytes, not %d or others than the first time", len(out), size)
		}
		first, known = sum, true
		return 1, nil
	}
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in `)

// readWrk knows that wrk mentions errors only if there were any.
func readWrk(out []byte) (int, error) {
	m := wrkRequests.FindSubmatch(out)
	if m == nil || bytes.Contains(out, []byte("Socket errors")) || bytes.Contains(out, []byte("Non-2xx")) {
		return 0, fmt.Errorf("%s", out)
	}
	return strconv.Atoi(string(m[1]))
}

var h2loadRequests = regexp.MustCompile(`requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)

func readH2load(out []byte) (int, error) {
	m := h2loadRequests.FindStringSubmatch(string(out))
	if m == nil || m[1] != m[4] || m[5] != "0" || m[6] != "0" || m[7] != "0" {
		return 0, fmt.Errorf("%s", out)
	}
	return strconv.Atoi(m[4])
}

// results is what the tools came to.
type results struct {
	mu       sync.Mutex
	requests map[string]int
	failures []string
}

func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range tools {
		need.Tool(t, tool.name, cmp.Or(tool.pkg, tool.name))
	}
}

// startTools keeps every tool running until ctx is done, and then lets it finish.
func startTools(ctx context.Context, t *testing.T, running *sync.WaitGroup, command func(name string, args ...string) *exec.Cmd, url string) *results {
	t.Helper()
	r := &results{requests: make(map[string]int)}
	for _, tool := range tools {
		args := tool.args(t, url)
		running.Go(func() {
			for ctx.Err() == nil {
				r.run(tool, command(tool.name, args...))
			}
		})
	}
	return r
}

func (r *results) run(tool tool, cmd *exec.Cmd) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	n := 0
	if err == nil {
		n, err = tool.read(stdout.Bytes())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests[tool.name] += n
	if err != nil {
		r.failures = append(r.failures, fmt.Sprintf("%s: %v %s", tool.name, err, strings.TrimSpace(stderr.String())))
	}
}

// check is called when all tools have ended.
func (r *results) check(t *testing.T) {
	t.Helper()
	for _, tool := range tools {
		t.Logf("%-14s %6d requests", tool.name, r.requests[tool.name])
		if r.requests[tool.name] == 0 {
			t.Errorf("%s made no request", tool.name)
		}
	}
	for _, f := range r.failures {
		t.Error(f)
	}
}

func TestToolsReadFailures(t *testing.T) {
	const wrk = "Running 3s test @ http://127.0.0.1/\n  596 requests in 3.10s, 72.63KB read\n%sRequests/sec: 192.27\n"
	const h2load = "finished in 3.00s\nrequests: 200 total, 200 started, 200 done, %s timeout\nstatus codes: 200 2xx\n"
	for _, tt := range []struct {
		read func([]byte) (int, error)
		out  string
		want int // requests; 0: a failure
	}{
		{readWrk, fmt.Sprintf(wrk, ""), 596},
		{readWrk, fmt.Sprintf(wrk, "  Socket errors: connect 0, read 1, write 0, timeout 0\n"), 0},
		{readWrk, fmt.Sprintf(wrk, "  Non-2xx or 3xx responses: 2\n"), 0},
		{readWrk, "", 0},
		{readH2load, fmt.Sprintf(h2load, "200 succeeded, 0 failed, 0 errored, 0"), 200},
		{readH2load, fmt.Sprintf(h2load, "199 succeeded, 1 failed, 0 errored, 0"), 0},
		{readH2load, fmt.Sprintf(h2load, "200 succeeded, 0 failed, 1 errored, 0"), 0},
		{readH2load, fmt.Sprintf(h2load, "200 succeeded, 0 failed, 0 errored, 1"), 0},
		{readH2load, "", 0},
		{sameBody(3), "abc", 1},
		{sameBody(3), "ab", 0},
	} {
		got, err := tt.read([]byte(tt.out))
		if got != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("%q: %d, %v; want %d", tt.out, got, err, tt.want)
		}
	}
	same := sameBody(3)
	if _, err := same([]byte("abc")); err != nil {
		t.Error(err)
	}
	if _, err := same([]byte("abd")); err == nil {
		t.Error("another body passed")
	}
}
