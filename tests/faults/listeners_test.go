package faults

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// listenersConfig is a node's configuration with these listeners.
func listenersConfig(listeners string) demo.Settings {
	return demo.Settings{DrainTimeout: time.Minute, Config: `node: {name: demo, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
` + listeners + `
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: echo, endpoints: ["{{.Origin.EchoAddress}}"]}
release: {drain_timeout: {{.DrainTimeout}}, verify: {window: 50ms}}
steering: bpf
shutdown: {lead: 0s}
`}
}

const (
	rawAndWeb = `  - {name: raw, address: "{{.Node.TCP}}", protocol: tcp}
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}`
	webAndMore = `  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
  - {name: more, address: "{{.Node.HTTPS}}", protocol: http}
routes:
  - {name: all, listeners: [web, more], match: {path_prefix: /}, upstreams: [{name: origin}]}`
)

// A supervisor that is killed after a release has added one listener and removed
// another leaves them so, the removed one while its last connection drains; the
// next supervisor can change them again.
func TestListenersOutliveTheSupervisor(t *testing.T) {
	n := node.Start(t, demo.Place{}, listenersConfig(rawAndWeb))
	raw, err := net.Dial("tcp", n.TCP.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	echo := func() {
		t.Helper()
		got := make([]byte, 4)
		raw.SetDeadline(time.Now().Add(time.Minute))
		if _, err := raw.Write([]byte("ping")); err != nil {
			t.Errorf("the connection of before: %v", err)
		} else if _, err := io.ReadFull(raw, got); err != nil || string(got) != "ping" {
			t.Errorf("the connection of before: %q, %v", got, err)
		}
	}
	echo()

	changeListeners(t, n, webAndMore)
	wantListeners(t, n, []string{"more", "web"}, []string{"raw"})
	wantAnswers(t, n.HTTP, n.HTTPS)
	wantRefused(t, n.TCP)

	killAndRestart(t, n)
	wantListeners(t, n, []string{"more", "web"}, []string{"raw"})
	wantAnswers(t, n.HTTP, n.HTTPS)
	wantRefused(t, n.TCP)
	echo()
	raw.Close()
	node.Eventually(t, "the first generation has ended", func() bool { return len(status(t, n).Generations) == 1 })
	wantListeners(t, n, []string{"more", "web"}, nil)

	changeListeners(t, n, rawAndWeb)
	node.Eventually(t, "the second generation has ended", func() bool { return len(status(t, n).Generations) == 1 })
	wantListeners(t, n, []string{"raw", "web"}, nil)
	wantAnswers(t, n.HTTP)
	wantRefused(t, n.HTTPS)

	killAndRestart(t, n)
	wantListeners(t, n, []string{"raw", "web"}, nil)
	wantAnswers(t, n.HTTP)
	wantRefused(t, n.HTTPS)
	changeListeners(t, n, webAndMore)
	wantAnswers(t, n.HTTP, n.HTTPS)
}

func killAndRestart(t *testing.T, n *demo.Node) {
	t.Helper()
	was := status(t, n).Current
	n.Kill()
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if is := status(t, n).Current; is != was {
		t.Fatalf("generation %d serves, and was %d", is, was)
	}
}

func changeListeners(t *testing.T, n *demo.Node, to string) {
	t.Helper()
	file, err := n.WriteConfig("candidate", listenersConfig(to))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := n.Release(t.Context(), file); err != nil || res.ExitCode != 0 {
		t.Fatalf("a release: %+v, %v", res, err)
	}
}

func wantListeners(t *testing.T, n *demo.Node, open, closed []string) {
	t.Helper()
	var isOpen, isClosed []string
	for _, l := range status(t, n).Listeners {
		if l.Closed {
			isClosed = append(isClosed, l.Name)
		} else {
			isOpen = append(isOpen, l.Name)
		}
	}
	slices.Sort(isOpen)
	if !slices.Equal(isOpen, open) || !slices.Equal(isClosed, closed) {
		t.Errorf("open are %v, closed %v; want %v and %v", isOpen, isClosed, open, closed)
	}
}

func wantAnswers(t *testing.T, at ...netip.AddrPort) {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, a := range at {
		res, err := client.Get("http://" + a.String() + "/")
		if err != nil {
			t.Error(err)
			continue
		}
		if res.Body.Close(); res.StatusCode >= 500 {
			t.Errorf("%s: %s", a, res.Status)
		}
	}
}

func wantRefused(t *testing.T, at netip.AddrPort) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", at.String(), time.Minute)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s: %v, want connection refused", at, err)
	}
}
