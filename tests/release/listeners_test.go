package release

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/supervisor/demo"
	"github.com/baton-mesh/baton/tests/node"
)

// TestManyListeners releases the proxy with very many listeners on one port, and
// asks each of them. BATON_TEST_LISTENERS says how many, and prints the figures.
func TestManyListeners(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("BATON_TEST_LISTENERS"))
	if err != nil {
		count = 200
	}
	port := portForAll(t)
	addr := func(i int) string { return fmt.Sprintf("127.2.%d.%d:%d", i/250, 1+i%250, port) }
	var listeners, names strings.Builder
	for i := range count {
		fmt.Fprintf(&listeners, "  - {name: l%d, address: %q, protocol: http}\n", i, addr(i))
		fmt.Fprintf(&names, "l%d, ", i)
	}
	settings := demo.Settings{Config: `node: {name: many, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
` + listeners.String() + `routes:
  - {name: all, listeners: [` + names.String() + `], match: {path_prefix: /}, upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
release: {ready_timeout: 60s, drain_timeout: {{.DrainTimeout}}, verify: {window: {{.VerifyWindow}}}}
shutdown: {lead: 0s}
`}
	n := node.Start(t, demo.Place{}, settings)
	file, err := n.WriteConfig("candidate", settings)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: node.Enough}
	for range 3 {
		began := time.Now()
		r, err := n.ReleaseUnwatched(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("release %v: %+v", time.Since(began).Round(time.Millisecond), r.Stages)
		if r.Outcome != "passed" {
			t.Fatalf("%s: %s", r.Outcome, r.Reason)
		}
		for i := range count {
			resp, err := client.Get("http://" + addr(i) + "/")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", addr(i), resp.Status)
			}
		}
		client.CloseIdleConnections()
		node.Eventually(t, "the old generation to end", func() bool {
			s, err := n.Status(t.Context())
			return err == nil && len(s.Generations) == 1
		})
	}
}

// portForAll is free on every address, and the kernel gives it to no client.
func portForAll(t *testing.T) int {
	for {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
}
