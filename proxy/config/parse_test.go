package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// parse reads a file that must be without mistakes.
func parse(t *testing.T, text string, env ...string) *Config {
	t.Helper()
	c, err := Parse("baton.yaml", []byte(text), env)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExampleIsDefault(t *testing.T) {
	c := parse(t, string(Example()))
	c.Listeners, c.Routes, c.Upstreams = nil, nil, nil
	if want := Default(); !reflect.DeepEqual(c, want) {
		t.Errorf("the example says\n%+v\nthe defaults are\n%+v", c, want)
	}
}

func TestExampleWritesDefaultsOut(t *testing.T) {
	short := parse(t, `
listeners:
  - {name: web, address: "127.0.0.1:8080", protocol: http}
  - {name: raw, address: "127.0.0.1:8081", protocol: tcp}
routes:
  - {name: all, listeners: [web], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
upstreams:
  - {name: origin, endpoints: ["127.0.0.1:9001"]}
  - {name: echo, endpoints: ["127.0.0.1:9002"]}
`)
	if example := parse(t, string(Example())); !reflect.DeepEqual(example, short) {
		t.Errorf("the example says\n%+v\nwithout what are defaults it says\n%+v", example, short)
	}
	walk(configType, "", func(path string, _ reflect.Type) {
		name := path[strings.LastIndex(path, ".")+1:] + ":"
		if !strings.Contains(string(Example()), name) {
			t.Errorf("the example has no %s", path)
		}
	})
}

func TestDefaultsOfElements(t *testing.T) {
	c := parse(t, valid)
	web, raw, origin := c.Listeners[0], c.Listeners[1], c.Upstreams[0]
	want := Listener{
		Name: "web", Address: "127.0.0.1:8080", Protocol: HTTP,
		Workers: 1, WorkerChoice: ByHash, Backlog: 4096,
		HeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second, MaxHeaderBytes: 64 << 10,
	}
	if !reflect.DeepEqual(web, want) {
		t.Errorf("http listener is %+v, want %+v", web, want)
	}
	want = Listener{
		Name: "raw", Address: "127.0.0.1:8081", Protocol: TCP,
		Workers: 1, WorkerChoice: ByHash, Backlog: 4096,
	}
	if !reflect.DeepEqual(raw, want) {
		t.Errorf("tcp listener is %+v, want %+v", raw, want)
	}
	wantUpstream := Upstream{
		Name: "origin", Endpoints: []string{"127.0.0.1:9001"}, Protocol: HTTP1,
		ConnectTimeout: 3 * time.Second, IdleTimeout: time.Minute, MaxIdle: 256,
	}
	if !reflect.DeepEqual(origin, wantUpstream) {
		t.Errorf("upstream is %+v, want %+v", origin, wantUpstream)
	}
	if w := c.Routes[0].Upstreams[0].Weight; w == nil || *w != 1 {
		t.Errorf("weight is %v, want 1", w)
	}
}

// A written zero is not an absent key.
func TestZeroIsNotDefault(t *testing.T) {
	c := parse(t, strings.Replace(valid, "protocol: http", "protocol: http, idle_timeout: 0s", 1))
	if got := c.Listeners[0].IdleTimeout; got != 0 {
		t.Errorf("idle_timeout is %v, want the 0s that was written", got)
	}
}

// everything differs from its default, so that a lost key shows.
const everything = `
node: {name: node.b_1-x, server_id: 4294967295}
runtime_dir: /tmp/b
admin: {socket: /tmp/a.sock, address: ""}
listeners:
  - name: web
    address: "[::]:80"
    protocol: http
    dual_stack: true
    workers: 64
    worker_choice: cpu
    backlog: 7
    max_connections: 9
    header_timeout: 1h2m3.5s
    idle_timeout: 100ms
    max_header_bytes: 1000B
    max_body_bytes: 3GiB
    trusted_proxies: [10.0.0.0/8, "2001:db8::/32"]
routes:
  - name: api
    listeners: [web]
    match: {hosts: ["*.example.com", "example.com"], path: "/a b: #c"}
    upstreams: [{name: a, weight: 0}, {name: b, weight: 3}]
    timeout: 1ns
upstreams:
  - {name: a, endpoints: ["origin.internal:1", "[::1]:65535"], protocol: h2c, connect_timeout: 0s, idle_timeout: 1us, max_idle: 0, max_connections: 5}
  - {name: b, endpoints: ["127.0.0.1:2"]}
proxy: {command: ["/bin/my server", "--flag=é", "", "null", "0x10", " lead", "a\nb"], user: "", nonblocking: false, baton: false}
release: {ready_timeout: 1ms, ramp: [0.01%, 33.33%, 99.99%, 100%], drain_timeout: 300h, max_generations: 2, on_inconclusive: rollback, verify: {window: 0s, max_error_rate: 0.01%, min_flows: 1000000}}
steering: bpf
shutdown: {lead: 0s}
balancer:
  interfaces: [eth0.7, "@b"]
  xdp_mode: generic
  reals: [{name: a, address: "2001:db8::a", server_id: 4294967295, weight: 0}, {name: b, address: 10.0.0.1}]
  vips: [{address: 10.9.0.1, protocols: [udp], quic: true, katran_ids: true, reals: [b]}, {address: 10.9.0.1, port: 65535}]
  health: {tcp_port: 1, http_path: /up, interval: 1ms, timeout: 2h, fall: 100, rise: 1, slow_start: 1m}
`

func TestMarshalParse(t *testing.T) {
	for name, text := range map[string]string{"example": string(Example()), "everything": everything, "short": valid} {
		t.Run(name, func(t *testing.T) {
			c := parse(t, text)
			out, err := c.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if again := parse(t, string(out)); !reflect.DeepEqual(c, again) {
				t.Errorf("got\n%+v\nwant\n%+v\nfrom\n%s", again, c, out)
			}
		})
	}
	c := parse(t, everything)
	if got, want := c.Listeners[0].TrustedProxies[1], netip.MustParsePrefix("2001:db8::/32"); got != want {
		t.Errorf("network is %v, want %v", got, want)
	}
	if got := c.Release.Ramp[1]; got != 0.3333 {
		t.Errorf("share is %v, want 0.3333", got)
	}
}

func TestEnvironment(t *testing.T) {
	c := parse(t, valid,
		"BATON_NODE_SERVER_ID=7",
		"BATON_RELEASE_DRAIN_TIMEOUT=1m",
		"BATON_RELEASE_VERIFY_WINDOW=3s",
		"BATON_RUNTIME_DIR=/tmp/b",
		"BATON_ADMIN_ADDRESS=",
		"BATON_STEERING=bpf",
		"BATON_PROXY_BATON=false",
		"BATON_NODE_NAME=007",
		"BATON_SERVER_ID=3", // a generation's, no override
		"PATH=/bin",
	)
	want := parse(t, valid)
	want.Node.Name, want.Node.ServerID = "007", 7
	want.Release.DrainTimeout = time.Minute
	want.Release.Verify.Window = 3 * time.Second
	want.RuntimeDir = "/tmp/b"
	want.Admin = Admin{Socket: "/tmp/b/admin.sock"}
	want.Steering = SteeringBPF
	want.Proxy.Baton, want.Proxy.Nonblocking = false, false
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

func TestEnvironmentMistakes(t *testing.T) {
	for assignment, want := range map[string]string{
		"BATON_RELEASE_DRAIN_TIMEOUT=soon": `$BATON_RELEASE_DRAIN_TIMEOUT: release.drain_timeout: "soon" is no duration (write it as 5s, 100ms or 1m30s)`,
		"BATON_RELEASE_DRAIN_TIMEOUT=60":   `$BATON_RELEASE_DRAIN_TIMEOUT: release.drain_timeout: 60 has no unit (write it as 60s)`,
		"BATON_NODE_SERVER_ID=x":           `$BATON_NODE_SERVER_ID: node.server_id: must be a whole number, not the text "x"`,
		"BATON_NODE_SERVER_ID=0":           `$BATON_NODE_SERVER_ID: node.server_id: is 0 (write a number that no other node has)`,
		"BATON_PROXY_BATON=":               `$BATON_PROXY_BATON: proxy.baton: has no value (write one, or leave the key out)`,
		"BATON_STEERING=hash":              `$BATON_STEERING: steering: unknown steering "hash" (write auto or bpf or takeover)`,
	} {
		t.Run(assignment, func(t *testing.T) {
			if _, err := Parse("baton.yaml", []byte(valid), []string{assignment}); err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestUnknownEnv(t *testing.T) {
	got := UnknownEnv([]string{
		"BATON_STEERNG=bpf", "BATON_STEERING=bpf", "BATON_PROXY_COMMAND=x", "BATON_STEERNG=again",
		"BATON_GENERATION_ID=1", "BATON_SLOT=1", "BATON_SERVER_ID=1", "BATON_CONFIG_FD=5", "BATON_KEYS_FD=6", "HOME=/", "BATONX=1",
	})
	if want := []string{"BATON_PROXY_COMMAND", "BATON_STEERNG"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "baton.yaml")
	if _, err := Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
	if err := os.WriteFile(file, []byte(valid), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BATON_STEERING", "bpf")
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.Steering != SteeringBPF {
		t.Errorf("steering is %s, want what the environment says", c.Steering)
	}
}

// Whatever the input: no panic, only mistakes that name the file, or a
// configuration that survives being written and read.
func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte(everything))
	f.Add(Example())
	for _, m := range mistakes {
		f.Add([]byte(strings.Replace(valid, m.old, m.new, 1)))
	}
	for _, odd := range []string{"", "#", "---", "- a", "a", "1: 2", "? {a: b}\n: c", "&a [*a]", "!!set {a}", "\xff\xfe", "{", "null", "%YAML 9"} {
		f.Add([]byte(odd))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("baton.yaml", data, nil)
		if err != nil {
			var found Mistakes
			if !errors.As(err, &found) || len(found) == 0 {
				t.Fatalf("error %v is no list of mistakes", err)
			}
			for _, m := range found {
				if m.File != "baton.yaml" || m.Reason == "" || strings.Contains(m.Error(), "\n") {
					t.Errorf("mistake %q", m.Error())
				}
			}
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("baton.yaml", out, nil)
		if err != nil {
			t.Fatalf("%v, in\n%s", err, out)
		}
		if !reflect.DeepEqual(c, again) {
			t.Fatalf("got\n%+v\nwant\n%+v\nfrom\n%s", again, c, out)
		}
	})
}

// Who is not said to know Baton gets its sockets as from systemd, unless the file says
// otherwise.
func TestNonblockingFollowsBaton(t *testing.T) {
	for proxy, want := range map[string]bool{
		"user: nobody":                      true,
		"baton: true":                       true,
		"baton: false":                      false,
		"baton: false, nonblocking: true":   true,
		"baton: true, nonblocking: false":   false,
		"nonblocking: false, baton: false":  false,
		"command: [server], baton: false":   false,
		"user: nobody, nonblocking: false":  false,
		"command: [baton-proxy, --verbose]": true,
	} {
		c := parse(t, strings.Replace(valid, "proxy: {command: [baton-proxy], user: nobody}", "proxy: {"+proxy+"}", 1))
		if c.Proxy.Nonblocking != want {
			t.Errorf("proxy: {%s}: nonblocking is %v", proxy, c.Proxy.Nonblocking)
		}
	}
}
