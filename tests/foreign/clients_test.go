package foreign

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/need"
	"github.com/baton-mesh/baton/tests/node"
)

// outcome is what one kind of client saw.
type outcome struct {
	Answered, Failed int
	Error            string // the first
}

// repeats are the clients that send a request again when its connection was closed
// before an answer began, as RFC 9110, section 9.2.2 lets them: for them a server that
// closes what is idle is no loss, so whatever they lose would be Baton's.
var repeats = map[string]bool{"curl": true, "net/http GET": true}

// TestClientsOfOthers has clients that people use stay on their connections while a
// server is replaced that closes idle ones when it is told to stop. Those that repeat
// may lose nothing. How many requests of the others fail is theirs and the server's
// doing; it is printed. Only with BATON_RELEASES.
func TestClientsOfOthers(t *testing.T) {
	if os.Getenv("BATON_RELEASES") == "" {
		t.Skip("measures what others' clients see: make foreign")
	}
	for _, tool := range [][2]string{{"node", "nodejs"}, {"systemd-notify", "systemd"}, {"gunicorn", "gunicorn"}, {"curl", "curl"}, {"wrk", "wrk"}} {
		need.Tool(t, tool[0], tool[1])
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	app := public(t, "app.py")
	for _, server := range []struct {
		name    string
		command []string
	}{
		{"Node.js", []string{"node", public(t, "server.js")}},
		{"gunicorn", []string{"gunicorn", "--worker-class", "gthread", "--threads", "32", "--keep-alive", "5", "--chdir", filepath.Dir(app), "app:application"}},
		{"Go", []string{exe, asServer}},
	} {
		t.Run(server.name, func(t *testing.T) { clientsOfOthers(t, server.command) })
	}
}

func clientsOfOthers(t *testing.T, command []string) {
	n := releases(t)
	settings := demo.Settings{Config: fmt.Sprintf(config, time.Duration(0)), Command: command}
	running := node.Start(t, demo.Place{}, settings)
	file, err := running.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	address := running.HTTP.String()
	var mu sync.Mutex
	seen := map[string]outcome{}
	var clients sync.WaitGroup
	for _, run := range []func(context.Context, string) (map[string]outcome, error){nodeClients, goClients, curlClients, wrkClient} {
		clients.Go(func() {
			got, err := run(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			for name, o := range got {
				all := seen[name]
				all.Answered += o.Answered
				all.Failed += o.Failed
				all.Error = cmp.Or(all.Error, o.Error)
				seen[name] = all
			}
		})
	}
	time.Sleep(time.Second) // they start
	for i := range n {
		if r, err := running.Release(t.Context(), file); err != nil || r.Outcome != "passed" {
			t.Errorf("release %d of %d: %+v, %v", i+1, n, r, err)
			break
		}
	}
	stop()
	clients.Wait()
	for name, o := range seen {
		t.Logf("%d releases, %-22s %6d answered, %d failed %s", n, name+":", o.Answered, o.Failed, o.Error)
		if o.Answered == 0 {
			t.Errorf("%s was never answered", name)
		}
		if repeats[name] && o.Failed > 0 {
			t.Errorf("%s repeats, and %d of its requests failed: %s", name, o.Failed, o.Error)
		}
	}
}

// nodeClients are in testdata/clients.js.
func nodeClients(ctx context.Context, address string) (map[string]outcome, error) {
	cmd := exec.Command("node", "testdata/clients.js", address)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { in.Close() })
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	counts, all := map[string]outcome{}, map[string]outcome{}
	err = json.Unmarshal(out, &counts)
	for name, o := range counts {
		all["Node.js "+name] = o
	}
	return all, err
}

// goClients are net/http's, with a GET that it may repeat and a POST that it may not
// once anything of it was sent.
func goClients(ctx context.Context, address string) (map[string]outcome, error) {
	var mu sync.Mutex
	all := map[string]outcome{}
	var clients sync.WaitGroup
	for _, method := range []string{"GET", "POST"} {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}, Timeout: time.Minute}
		for range 4 {
			clients.Go(func() {
				var o outcome
				for ctx.Err() == nil {
					if err := once(client, method, address); err == nil {
						o.Answered++
					} else {
						o.Failed++
						o.Error = cmp.Or(o.Error, err.Error())
					}
					time.Sleep(2 * time.Millisecond)
				}
				mu.Lock()
				defer mu.Unlock()
				sum := all["net/http "+method]
				all["net/http "+method] = outcome{sum.Answered + o.Answered, sum.Failed + o.Failed, cmp.Or(sum.Error, o.Error)}
			})
		}
	}
	clients.Wait()
	return all, nil
}

func once(client *http.Client, method, address string) error {
	var body io.Reader
	if method == "POST" {
		body = strings.NewReader("a")
	}
	req, err := http.NewRequest(method, "http://"+address+"/", body)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// curlClients each ask for many URLs in a row on one connection.
func curlClients(ctx context.Context, address string) (map[string]outcome, error) {
	var mu sync.Mutex
	var all outcome
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				// Stopped by its end: a curl that is killed would have failed.
				cmd := exec.Command("curl", "-s", "-o", "/dev/null", "-w", "%{exitcode} %{errormsg}\n", "--max-time", "60", "http://"+address+"/[1-2000]")
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				out, _ := cmd.Output()
				mu.Lock()
				for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
					if code, text, _ := strings.Cut(lines.Text(), " "); code == "0" {
						all.Answered++
					} else {
						all.Failed++
						all.Error = cmp.Or(all.Error, text)
					}
				}
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return map[string]outcome{"curl": all}, nil
}

var (
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
	wrkErrors   = regexp.MustCompile(`connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
)

// wrkClient is wrk, which never pauses, in runs of two seconds.
func wrkClient(ctx context.Context, address string) (map[string]outcome, error) {
	var all outcome
	for ctx.Err() == nil {
		cmd := exec.Command("wrk", "-t1", "-c4", "-d2s", "--timeout", "60s", "http://"+address+"/")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("wrk: %w: %s", err, out)
		}
		var n [4]int
		if m := wrkRequests.FindSubmatch(out); m != nil {
			fmt.Sscan(string(m[1]), &n[0])
			all.Answered += n[0]
		}
		if m := wrkErrors.FindSubmatch(out); m != nil {
			for i := range n {
				fmt.Sscan(string(m[i+1]), &n[i])
				all.Failed += n[i]
			}
			all.Error = cmp.Or(all.Error, string(m[0]))
		}
	}
	return map[string]outcome{"wrk": all}, nil
}
