package config

import (
	"errors"
	"strings"
	"testing"
)

// valid is the file that each mistake is made in.
const valid = `node: {name: edge-1, server_id: 42}
runtime_dir: /run/baton
admin: {address: "127.0.0.1:9900"}
listeners:
  - {name: web, address: "127.0.0.1:8080", protocol: http}
  - {name: raw, address: "127.0.0.1:8081", protocol: tcp}
routes:
  - {name: all, listeners: [web], upstreams: [{name: origin}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
upstreams:
  - {name: origin, endpoints: ["127.0.0.1:9001"]}
  - {name: echo, endpoints: ["127.0.0.1:9002"]}
proxy: {command: [baton-proxy], user: nobody}
release: {ramp: ["100%"]}
steering: auto
`

// mistakes are changes of the valid file and the whole of what is said about
// them: a second line would be a mistake that the user has not made.
var mistakes = []struct {
	name     string
	old, new string
	want     string
}{
	{"not YAML", "steering: auto", "steering: [auto",
		"baton.yaml:15: is not YAML: did not find expected ',' or ']' (check the indentation, the brackets and the quotes)"},
	{"tab", "steering: auto", "\tsteering: auto",
		"baton.yaml:15: is not YAML: found character that cannot start any token (indent with spaces; put text that begins with @, ` or % in quotes)"},
	{"two documents", "steering: auto", "steering: auto\n---\nsteering: bpf",
		"baton.yaml:16: holds more than one document (remove the line ---)"},
	{"alias as a star", "upstreams: [{name: origin}]}", "match: {hosts: [*.example.com]}, upstreams: [{name: origin}]}",
		"baton.yaml:8: is not YAML: did not find expected alphabetic or numeric character (put text that begins with * or & in quotes)"},
	{"alias of nothing", "steering: auto", "steering: *auto",
		"baton.yaml:15: is not YAML: unknown anchor 'auto' referenced (put text that begins with * in quotes)"},
	{"bad indentation", "steering: auto", " steering: auto",
		"baton.yaml:15: is not YAML: did not find expected key (check the indentation, the brackets and the quotes)"},
	{"not UTF-8", "steering: auto", "steering: \u0007",
		"baton.yaml: is not YAML: control characters are not allowed (save the file as UTF-8 text)"},
	{"colon in text", "steering: auto", "steering: a: b",
		"baton.yaml:15: is not YAML: mapping values are not allowed in this context (indent as the line above; put text with a colon in quotes)"},
	{"no colon", "steering: auto", "steering\nnode",
		"baton.yaml:15: is not YAML: could not find expected ':' (write key: value, with a space after the colon)"},
	{"alias", "listeners: [raw], upstreams: [{name: echo}]", "listeners: &l [raw], upstreams: [{name: echo}]}\n  - {name: more, listeners: *l, upstreams: [{name: echo}]",
		"baton.yaml:10: routes[2].listeners: is a YAML alias (write the value out)"},
	{"unknown key", "user: nobody", "usr: nobody",
		"baton.yaml:13: proxy.usr: unknown key (did you mean user?)"},
	{"unknown key in capitals", "steering: auto", "Steering: auto",
		"baton.yaml:15: Steering: unknown key (did you mean steering?)"},
	{"unknown key that belongs elsewhere", "steering: auto", "drain_timeout: 5s",
		"baton.yaml:15: drain_timeout: unknown key (did you mean release.drain_timeout?)"},
	{"unknown key like no other", "user: nobody", "bananas: nobody",
		"baton.yaml:13: proxy.bananas: unknown key (known here: command, user, nonblocking, baton)"},
	{"unknown key with a dot", "user: nobody", `"a.b": nobody`,
		`baton.yaml:13: proxy."a.b": unknown key (known here: command, user, nonblocking, baton)`},
	{"key that is a list", "user: nobody", "[a, b]: nobody",
		"baton.yaml:13: proxy: has a key that is no plain word (write name: value)"},
	{"key with a tag", "user: nobody", "!word user: nobody",
		"baton.yaml:13: proxy: has a key that is no plain word (write name: value)"},
	{"merge key", "user: nobody", "<<: {user: nobody}",
		`baton.yaml:13: proxy."<<": unknown key (known here: command, user, nonblocking, baton)`},
	{"misspelled name breaks no reference", "{name: web, address", "{nmae: web, address",
		"baton.yaml:5: listeners[0].nmae: unknown key (did you mean name?)"},
	{"misspelled section", "listeners:\n", "listners:\n",
		"baton.yaml:4: listners: unknown key (did you mean listeners?)"},
	{"duplicate key", "steering: auto", "steering: auto\nruntime_dir: /run/other",
		"baton.yaml:16: runtime_dir: is written twice (first on line 2)"},
	{"no value", "runtime_dir: /run/baton", "runtime_dir:",
		"baton.yaml:2: runtime_dir: has no value (write one, or leave the key out)"},
	{"number for text", "name: edge-1", "name: 42",
		`baton.yaml:1: node.name: must be text, not the number 42 (write it in quotes: "42")`},
	{"text for a number", "server_id: 42", `server_id: "42"`,
		`baton.yaml:1: node.server_id: must be a whole number, not the text "42" (write it without quotes)`},
	{"number out of range", "server_id: 42", "server_id: 4294967296",
		"baton.yaml:1: node.server_id: 4294967296 does not fit (write 1 to 4294967295)"},
	{"negative id", "server_id: 42", "server_id: -1",
		"baton.yaml:1: node.server_id: -1 does not fit (write 1 to 4294967295)"},
	{"fraction for a number", "server_id: 42", "server_id: 4.2",
		"baton.yaml:1: node.server_id: must be a whole number, not the number 4.2"},
	{"text for a switch", "user: nobody", `nonblocking: "yes"`,
		`baton.yaml:13: proxy.nonblocking: must be true or false, not the text "yes" (write true or false)`},
	{"old YAML switch", "user: nobody", "nonblocking: on",
		`baton.yaml:13: proxy.nonblocking: must be true or false, not the text "on" (write true or false)`},
	{"text for a list", "command: [baton-proxy]", "command: baton-proxy",
		`baton.yaml:13: proxy.command: must be a list, not the text "baton-proxy" (write ["baton-proxy"])`},
	{"keys for a list", "command: [baton-proxy]", "command: {a: b}",
		"baton.yaml:13: proxy.command: must be a list, not keys and values (begin each entry with a dash)"},
	{"list for text", "user: nobody", "user: [nobody]",
		"baton.yaml:13: proxy.user: must be text, not a list"},
	{"list for keys", `release: {ramp: ["100%"]}`, "release: [5s]",
		"baton.yaml:14: release: must be keys and values, not a list"},
	{"text for an element", "  - {name: echo, endpoints", "  - echo\n  - {name: echo, endpoints",
		`baton.yaml:12: upstreams[1]: must be keys and values, not the text "echo" (write {name: echo})`},
	{"date", "name: edge-1", "name: 2026-01-01",
		`baton.yaml:1: node.name: must be text, not a date (write it in quotes: "2026-01-01")`},
	{"unknown tag", "user: nobody", "user: !who nobody",
		`baton.yaml:13: proxy.user: must be text, not a value tagged !who (write it in quotes: "nobody")`},
	{"duration without unit", `ramp: ["100%"]`, "drain_timeout: 60",
		"baton.yaml:14: release.drain_timeout: 60 has no unit (write it as 60s)"},
	{"duration in words", `ramp: ["100%"]`, "drain_timeout: 5 sec",
		`baton.yaml:14: release.drain_timeout: "5 sec" is no duration (write it as 5s, 100ms or 1m30s)`},
	{"negative duration", `ramp: ["100%"]`, "drain_timeout: -5s",
		`baton.yaml:14: release.drain_timeout: "-5s" is negative (write 0s or more)`},
	{"size without unit", `8080", protocol: http`, `8080", protocol: http, max_body_bytes: 4096`,
		"baton.yaml:5: listeners[0].max_body_bytes: 4096 has no unit (write it as 4096B)"},
	{"size of an unknown unit", `8080", protocol: http`, `8080", protocol: http, max_body_bytes: 64KB`,
		`baton.yaml:5: listeners[0].max_body_bytes: "64KB" is no size (write it as 64KiB)`},
	{"share without unit", `ramp: ["100%"]`, "ramp: [25, 100%]",
		"baton.yaml:14: release.ramp[0]: 25 has no unit (write it as 25%)"},
	{"share in words", `ramp: ["100%"]`, "ramp: [all]",
		`baton.yaml:14: release.ramp[0]: "all" is no share (write it as 25%)`},
	{"share above all", `ramp: ["100%"]`, "ramp: [101%]",
		`baton.yaml:14: release.ramp[0]: "101%" is more than everything (write at most 100%)`},
	{"share too fine", `ramp: ["100%"]`, "ramp: [0.001%, 100%]",
		`baton.yaml:14: release.ramp[0]: "0.001%" is too fine a share (write a multiple of 0.01%, and at least that)`},
	{"network", `8080", protocol: http`, `8080", protocol: http, trusted_proxies: [10.0.0.1]`,
		`baton.yaml:5: listeners[0].trusted_proxies[0]: "10.0.0.1" is no network (write it as 10.0.0.0/8)`},
	{"http3", `8080", protocol: http`, `8080", protocol: http, http3: true`,
		"baton.yaml:5: listeners[0].http3: has no meaning for http (leave it out, or write protocol: https)"},
	{"tls on tcp", `8081", protocol: tcp`, `8081", protocol: tcp, tls: {certificate: x}`,
		"baton.yaml:6: listeners[1].tls: has no meaning for tcp (leave it out, or write protocol: https)"},
	{"upstream protocol", `["127.0.0.1:9001"]`, `["127.0.0.1:9001"], protocol: h2`,
		`baton.yaml:11: upstreams[0].protocol: unknown protocol "h2" (did you mean h2c?)`},
	{"a key of http on udp", `8081", protocol: tcp`, `8081", protocol: udp, max_body_bytes: 1KiB`,
		"baton.yaml:6: listeners[1].max_body_bytes: has no meaning for udp (leave it out)"},
	{"udp that never ends", `8081", protocol: tcp`, `8081", protocol: udp, idle_timeout: 0s`,
		"baton.yaml:6: listeners[1].idle_timeout: is 0, and nothing but silence ends a flow of udp (write it as 30s)"},
	{"name missing", "name: edge-1", `name: ""`,
		"baton.yaml:1: node.name: is missing (give it one)"},
	{"name with capitals", "name: edge-1", "name: Edge",
		`baton.yaml:1: node.name: "Edge" is no name (write a-z, 0-9 and, inside, dots, dashes and underscores)`},
	{"name ending in a dot", "name: edge-1", "name: edge.",
		`baton.yaml:1: node.name: "edge." is no name (write a-z, 0-9 and, inside, dots, dashes and underscores)`},
	{"name too long", "name: edge-1", "name: " + strings.Repeat("a", 65),
		"baton.yaml:1: node.name: has 65 characters (write at most 64)"},
	{"server_id 0", "server_id: 42", "server_id: 0",
		"baton.yaml:1: node.server_id: is 0 (write a number that no other node has)"},
	{"unknown byte order", "server_id: 42", "server_id: 42, tcp_option: {byte_order: hots}",
		`baton.yaml:1: node.tcp_option.byte_order: unknown byte order "hots" (did you mean host?)`},
	{"runtime_dir relative", "runtime_dir: /run/baton", "runtime_dir: run/baton",
		`baton.yaml:2: runtime_dir: "run/baton" is no absolute path (begin it with /)`},
	{"runtime_dir too long", "runtime_dir: /run/baton", "runtime_dir: /" + strings.Repeat("r", 75),
		"baton.yaml:2: runtime_dir: has 76 bytes, too many for a Unix socket (write at most 75)"},
	{"admin socket relative", "admin: {", "admin: {socket: admin.sock, ",
		`baton.yaml:3: admin.socket: "admin.sock" is no absolute path (begin it with /)`},
	{"admin socket too long", "admin: {", "admin: {socket: /" + strings.Repeat("s", 107) + ", ",
		"baton.yaml:3: admin.socket: has 108 bytes, too many for a Unix socket (write at most 107)"},
	{"admin address", "127.0.0.1:9900", "localhost",
		`baton.yaml:3: admin.address: "localhost" is no IP:port (write it as "127.0.0.1:8080" or "[::1]:8080")`},
	{"admin address of a listener", "127.0.0.1:9900", "127.0.0.1:8080",
		"baton.yaml:3: admin.address: overlaps listener web, 127.0.0.1:8080 (see line 5)"},
	{"admin wildcard over a listener", "127.0.0.1:9900", "[::]:8081",
		"baton.yaml:3: admin.address: overlaps listener raw, 127.0.0.1:8081 (see line 6)"},
	{"empty command", "[baton-proxy]", "[]",
		"baton.yaml:13: proxy.command: is empty (write [baton-proxy])"},
	{"scalar for a section", "node: {name: edge-1, server_id: 42}", "node: edge-1",
		`baton.yaml:1: node: must be keys and values, not the text "edge-1" (write {name: edge-1})`},
	{"zero byte", "[baton-proxy]", `["a\0"]`,
		"baton.yaml:13: proxy.command: has an argument with a zero byte (leave it out)"},
	{"ready_timeout 0", `ramp: ["100%"]`, "ready_timeout: 0s",
		"baton.yaml:14: release.ready_timeout: is 0 (write it as 10s)"},
	{"drain_timeout 0", `ramp: ["100%"]`, "drain_timeout: 0s",
		"baton.yaml:14: release.drain_timeout: is 0 (write it as 60s)"},
	{"max_generations", `ramp: ["100%"]`, "max_generations: 251",
		"baton.yaml:14: release.max_generations: 251 is out of bounds (write 2 to 250)"},
	{"max_generations 1", `ramp: ["100%"]`, "max_generations: 1",
		"baton.yaml:14: release.max_generations: 1 is out of bounds (write 2 to 250)"},
	{"on_inconclusive", `ramp: ["100%"]`, "on_inconclusive: holt",
		`baton.yaml:14: release.on_inconclusive: unknown value "holt" (did you mean hold?)`},
	{"min_flows 0", `ramp: ["100%"]`, "verify: {min_flows: 0}",
		"baton.yaml:14: release.verify.min_flows: 0 is out of bounds (write 1 to 1000000)"},
	{"max_error_rate", `ramp: ["100%"]`, "verify: {max_error_rate: 20}",
		"baton.yaml:14: release.verify.max_error_rate: 20 has no unit (write it as 20%)"},
	{"empty ramp", `ramp: ["100%"]`, "ramp: []",
		`baton.yaml:14: release.ramp: is empty (write ["100%"])`},
	{"ramp falls", `ramp: ["100%"]`, "ramp: [25%, 25%, 100%]",
		"baton.yaml:14: release.ramp[1]: 25% does not rise above 25% (write rising shares)"},
	{"ramp ends early", `ramp: ["100%"]`, "ramp: [1%, 50%]",
		"baton.yaml:14: release.ramp[1]: the ramp ends with 50% (end it with 100%)"},
	{"steering", "steering: auto", "steering: bpff",
		`baton.yaml:15: steering: unknown steering "bpff" (did you mean bpf?)`},
	{"listener name missing", "{name: web, address", "{address",
		"baton.yaml:5: listeners[0].name: is missing (give it one)"},
	{"listener name taken", "{name: raw, address", "{name: web, address",
		`baton.yaml:6: listeners[1].name: "web" is taken (see line 5)`},
	{"listener address missing", `address: "127.0.0.1:8080", `, "",
		`baton.yaml:5: listeners[0].address: is missing (write it as "127.0.0.1:8080")`},
	{"listener hostname", `"127.0.0.1:8080"`, `"localhost:8080"`,
		`baton.yaml:5: listeners[0].address: "localhost:8080" is no IP:port (write it as "127.0.0.1:8080" or "[::1]:8080")`},
	{"listener port 0", `"127.0.0.1:8080"`, `"127.0.0.1:0"`,
		"baton.yaml:5: listeners[0].address: port 0 is no port to listen on (write 1 to 65535)"},
	{"listener port too high", `"127.0.0.1:8080"`, `"127.0.0.1:65536"`,
		`baton.yaml:5: listeners[0].address: "127.0.0.1:65536" is no IP:port (write it as "127.0.0.1:8080" or "[::1]:8080")`},
	{"listener mapped address", `"127.0.0.1:8080"`, `"[::ffff:127.0.0.1]:8080"`,
		`baton.yaml:5: listeners[0].address: "[::ffff:127.0.0.1]:8080" is an IPv4 address in IPv6 form (write "127.0.0.1:8080")`},
	{"protocol missing", ", protocol: http", "",
		"baton.yaml:5: listeners[0].protocol: is missing (write http or https or tcp or udp)"},
	{"protocol misspelled", "protocol: http", "protocol: htp",
		`baton.yaml:5: listeners[0].protocol: unknown protocol "htp" (did you mean http?)`},
	{"worker_choice", "protocol: http", "protocol: http, worker_choice: random",
		`baton.yaml:5: listeners[0].worker_choice: unknown worker_choice "random" (write hash or cpu)`},
	{"dual_stack on an address", "protocol: http", "protocol: http, dual_stack: true",
		"baton.yaml:5: listeners[0].dual_stack: only [::] can serve both families (leave it out, or write the address as [::])"},
	{"workers", "protocol: http", "protocol: http, workers: 65",
		"baton.yaml:5: listeners[0].workers: 65 is out of bounds (write 1 to 64)"},
	{"no workers", "protocol: http", "protocol: http, workers: 0",
		"baton.yaml:5: listeners[0].workers: 0 is out of bounds (write 1 to 64)"},
	{"backlog", "protocol: http", "protocol: http, backlog: 0",
		"baton.yaml:5: listeners[0].backlog: 0 is out of bounds (write 1 to 2147483647)"},
	{"max_connections", "protocol: http", "protocol: http, max_connections: -1",
		"baton.yaml:5: listeners[0].max_connections: -1 is negative (write 0 or more)"},
	{"max_header_bytes 0", "protocol: http", "protocol: http, max_header_bytes: 0B",
		"baton.yaml:5: listeners[0].max_header_bytes: is 0, and no request has no head (write it as 64KiB)"},
	{"http keys on tcp", "protocol: tcp", "protocol: tcp, header_timeout: 1s, max_header_bytes: 1B, max_body_bytes: 1B, trusted_proxies: [10.0.0.0/8]",
		"baton.yaml:6: listeners[1].header_timeout: has no meaning for tcp (leave it out)\n" +
			"baton.yaml:6: listeners[1].max_header_bytes: has no meaning for tcp (leave it out)\n" +
			"baton.yaml:6: listeners[1].max_body_bytes: has no meaning for tcp (leave it out)\n" +
			"baton.yaml:6: listeners[1].trusted_proxies: has no meaning for tcp (leave it out)"},
	{"overlap", `"127.0.0.1:8081"`, `"127.0.0.1:8080"`,
		"baton.yaml:6: listeners[1].address: 127.0.0.1:8080 overlaps listener web, 127.0.0.1:8080 (see line 5)"},
	{"route name taken", "{name: raw, listeners", "{name: all, listeners",
		`baton.yaml:9: routes[1].name: "all" is taken (see line 8)`},
	{"route without listeners", "listeners: [web], ", "",
		"baton.yaml:5: listeners[0]: no route serves listener web (name it in the listeners of a route)\n" +
			"baton.yaml:8: routes[0].listeners: there is none (name the listeners that the route serves)"},
	{"route to an unknown listener", "listeners: [web]", "listeners: [wep, web]",
		`baton.yaml:8: routes[0].listeners[0]: no listener is named "wep" (did you mean web?)`},
	{"listener named twice", "listeners: [web]", "listeners: [web, web]",
		`baton.yaml:8: routes[0].listeners[1]: "web" is named twice (name it once)`},
	{"listener without a route", "  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}\n", "",
		"baton.yaml:6: listeners[1]: no route serves listener raw (name it in the listeners of a route)"},
	{"http and tcp mixed", "listeners: [web]", "listeners: [web, raw]",
		"baton.yaml:8: routes[0].listeners: mixes http (web) and tcp (raw) (write a route for each)\n" +
			"baton.yaml:9: routes[1].listeners[0]: tcp listener raw has a route already (see line 8)"},
	{"tcp with two routes", "listeners: [raw], upstreams: [{name: echo}]}", "listeners: [raw], upstreams: [{name: echo}]}\n  - {name: more, listeners: [raw], upstreams: [{name: echo}]}",
		"baton.yaml:10: routes[2].listeners[0]: tcp listener raw has a route already (see line 9)"},
	{"tcp with a match", "listeners: [raw],", "listeners: [raw], match: {path: /},",
		"baton.yaml:9: routes[1].match: tcp listener raw has nothing to match (leave it out)"},
	{"tcp with a timeout", "listeners: [raw],", "listeners: [raw], timeout: 1s,",
		"baton.yaml:9: routes[1].timeout: has no meaning for tcp (leave it out)"},
	{"host", "listeners: [web],", `listeners: [web], match: {hosts: ["http://example.com", "*.example.com", "a.*.com"]},`,
		"baton.yaml:8: routes[0].match.hosts[0]: \"http://example.com\" is no host (write it as example.com or \"*.example.com\")\n" +
			`baton.yaml:8: routes[0].match.hosts[2]: "a.*.com" is no host (write it as example.com or "*.example.com")`},
	{"path and prefix", "listeners: [web],", "listeners: [web], match: {path: /a, path_prefix: /},",
		"baton.yaml:8: routes[0].match.path: is set together with path_prefix (write one of them)"},
	{"path without a slash", "listeners: [web],", "listeners: [web], match: {path_prefix: api},",
		`baton.yaml:8: routes[0].match.path_prefix: "api" does not begin with / (write "/api")`},
	{"route without upstreams", ", upstreams: [{name: origin}]", "",
		"baton.yaml:8: routes[0].upstreams: there is none (write [{name: origin}])"},
	{"backend without a name", "{name: origin}]}", "{weight: 2}]}",
		"baton.yaml:8: routes[0].upstreams[0].name: is missing (name an upstream)"},
	{"unknown upstream", "{name: origin}]}", "{name: orgin}]}",
		`baton.yaml:8: routes[0].upstreams[0].name: no upstream is named "orgin" (did you mean origin?)`},
	{"upstream named twice", "{name: origin}]}", "{name: origin}, {name: origin}]}",
		`baton.yaml:8: routes[0].upstreams[1].name: "origin" is named twice (write it once, with the sum of the weights)`},
	{"negative weight", "{name: origin}]}", "{name: origin}, {name: echo, weight: -1}]}",
		"baton.yaml:8: routes[0].upstreams[1].weight: -1 is out of bounds (write 0 to 1000000)"},
	{"no weight at all", "{name: origin}]}", "{name: origin, weight: 0}]}",
		"baton.yaml:8: routes[0].upstreams: all weights are 0 (give one upstream a weight)"},
	{"upstream name taken", "{name: echo, endpoints", "{name: origin, endpoints",
		`baton.yaml:12: upstreams[1].name: "origin" is taken (see line 11)`},
	{"upstream without endpoints", `, endpoints: ["127.0.0.1:9001"]`, "",
		`baton.yaml:11: upstreams[0].endpoints: there is none (write ["127.0.0.1:9001"])`},
	{"endpoint without a port", `"127.0.0.1:9001"`, `"127.0.0.1"`,
		`baton.yaml:11: upstreams[0].endpoints[0]: "127.0.0.1" is no host:port (write it as "127.0.0.1:9001")`},
	{"endpoint with port 0", `"127.0.0.1:9001"`, `"origin.internal:0"`,
		`baton.yaml:11: upstreams[0].endpoints[0]: "origin.internal:0" is no host:port (write it as "127.0.0.1:9001")`},
	{"endpoint without a host", `"127.0.0.1:9001"`, `":9001"`,
		`baton.yaml:11: upstreams[0].endpoints[0]: ":9001" is no host:port (write it as "127.0.0.1:9001")`},
	{"max_idle", `["127.0.0.1:9001"]`, `["127.0.0.1:9001"], max_idle: -1, max_connections: -1`,
		"baton.yaml:11: upstreams[0].max_idle: -1 is negative (write 0 or more)\n" +
			"baton.yaml:11: upstreams[0].max_connections: -1 is negative (write 0 or more)"},
}

func TestMistakes(t *testing.T) {
	if _, err := Parse("baton.yaml", []byte(valid), nil); err != nil {
		t.Fatalf("the file without mistakes: %v", err)
	}
	for _, test := range mistakes {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(valid, test.old) {
				t.Fatalf("the valid file has no %q", test.old)
			}
			c, err := Parse("baton.yaml", []byte(strings.Replace(valid, test.old, test.new, 1)), nil)
			if c != nil {
				t.Error("a configuration was returned")
			}
			var found Mistakes
			if !errors.As(err, &found) {
				t.Fatalf("error %v is not of type Mistakes", err)
			}
			if got := found.Error(); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}
