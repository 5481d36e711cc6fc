package release

import (
	"bytes"
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

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/need"
)

// A tool is somebody else's client: it shares no mistake with those of package
// demo. It runs again and again, each time for a few seconds at most.
type tool struct {
	name    string
	program string
	pkg     string // of Debian
	args    func(t *testing.T, web, edge string) []string
	// read takes what a run printed and returns how many requests it made, or
	// why it must count as failed.
	read func(out []byte) (requests int, err error)
}

// The limits on time are for what hangs. A slow answer is none.
const maxTime = "120"

var tools = []tool{
	curl("curl http/1.1", "--http1.1", false),
	curl("curl http/1.1 TLS", "--http1.1", true),
	// No curl on HTTP/2: 7.88.1 (Debian 12), once it has had a GOAWAY from any server,
	// drops the last DATA if it reads it together with the end of the stream, and
	// exits with 0.
	wrk("wrk", false),
	wrk("wrk TLS", true),
	// Paced by a slow answer: with --rps, h2load 1.52 stands still once a
	// connection was closed.
	h2load("h2load http/1.1", false, "--h1", "--clients", "4", "--requests", "100"),
	// It does not connect again once it has been told to go, and gives up what it
	// has not begun. So each connection begins at once all it ever does.
	h2load("h2load h2", true, "--clients", "4", "--requests", "12", "--max-concurrent-streams", "3"),
	h2load("h2load h2c", false, "--clients", "4", "--requests", "12", "--max-concurrent-streams", "3"),
	nodeWebSocket("ws of npm", false),
	nodeWebSocket("ws of npm TLS", true),
}

// curl gets one URL each time: given several, it sends a request again that met
// a connection which had been closed.
func curl(name, version string, secure bool) tool {
	return tool{name, "curl", "curl", func(_ *testing.T, web, edge string) []string {
		return []string{"--silent", "--show-error", "--fail", "--insecure", "--max-time", maxTime, version, base(web, edge, secure) + slowPath(300, curlKiB)}
	}, sameBody(curlKiB << 10)}
}

// wrk is paced, since a proxy and its clients share the machine. The pause also
// leaves connections idle, where a close without notice is an error.
func wrk(name string, secure bool) tool {
	return tool{name, "wrk", "wrk", func(t *testing.T, web, edge string) []string {
		script := filepath.Join(t.TempDir(), "pause.lua")
		if err := os.WriteFile(script, []byte("function delay() return 20 end\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return []string{"--threads", "1", "--connections", "4", "--duration", "3s", "--timeout", maxTime + "s", "--script", script, base(web, edge, secure) + "/small?seed=1"}
	}, readWrk}
}

func h2load(name string, secure bool, args ...string) tool {
	ms := 50
	if args[0] != "--h1" {
		ms = 500
	}
	return tool{name, "h2load", "nghttp2-client", func(_ *testing.T, web, edge string) []string {
		return append(args, base(web, edge, secure)+slowPath(ms, 1))
	}, readH2load}
}

func nodeWebSocket(name string, secure bool) tool {
	return tool{name, "node", "nodejs", func(_ *testing.T, web, edge string) []string {
		url := "ws://" + web
		if secure {
			url = "wss://" + edge
		}
		return []string{"testdata/echo.js", url + "/ws"}
	}, func(out []byte) (int, error) { return strconv.Atoi(strings.TrimSpace(string(out))) }}
}

func base(web, edge string, secure bool) string {
	if secure {
		return "https://" + edge
	}
	return "http://" + web
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

// results is what the clients by others came to.
type results struct {
	names []string

	mu       sync.Mutex
	requests map[string]int
	failures []string
}

// nodeModules is where Debian puts packages of npm.
const nodeModules = "/usr/share/nodejs"

func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range tools {
		need.Tool(t, tool.program, tool.pkg)
	}
	_, err := os.Stat(filepath.Join(nodeModules, "ws"))
	need.That(t, err == nil, "ws for Node.js: apt install node-ws (make test does)")
}

// startTools keeps every client by others running until ctx is done, and then lets it finish.
func startTools(ctx context.Context, t *testing.T, running *sync.WaitGroup, at site, n *demo.Node) *results {
	t.Helper()
	r := &results{requests: make(map[string]int)}
	repeat := func(name string, run func() (int, error), end func()) {
		r.names = append(r.names, name)
		running.Go(func() {
			defer end()
			for ctx.Err() == nil {
				requests, err := run()
				r.add(name, requests, err)
			}
		})
	}
	for _, tool := range tools {
		args := tool.args(t, n.HTTP.String(), n.HTTPS.String())
		repeat(tool.name, func() (int, error) { return tool.run(at.command(tool.program, args...)) }, func() {})
	}
	for _, l := range libraries {
		run, end := l.start(t, at, n)
		repeat(l.name, run, end)
	}
	return r
}

func (tool tool) run(cmd *exec.Cmd) (requests int, err error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "NODE_PATH="+nodeModules, "NODE_TLS_REJECT_UNAUTHORIZED=0", "NODE_NO_WARNINGS=1")
	if err = cmd.Run(); err == nil {
		requests, err = tool.read(stdout.Bytes())
	}
	if err != nil {
		err = fmt.Errorf("%w %s", err, strings.TrimSpace(stderr.String()))
	}
	return requests, err
}

// add notes what a run came to.
func (r *results) add(name string, requests int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests[name] += requests
	if err != nil {
		r.failures = append(r.failures, fmt.Sprintf("%s: %v", name, err))
	}
}

// check is called when all tools have ended.
func (r *results) check(t *testing.T) {
	t.Helper()
	for _, name := range r.names {
		t.Logf("%-18s %6d requests", name, r.requests[name])
		if r.requests[name] == 0 {
			t.Errorf("%s made no request", name)
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
