package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// balancing is the file that each mistake is made in: a balancer's alone.
const balancing = `balancer:
  interfaces: [eth0]
  reals:
    - {name: node-1, address: 10.2.0.11, server_id: 11}
    - {name: node-2, address: 10.2.0.12, server_id: 12, weight: 3}
  vips:
    - {address: 10.9.0.1, port: 443, quic: true}
    - {address: "2001:db8::1", port: 0, protocols: [tcp], reals: [node-2]}
  health: {tcp_port: 443}
`

func TestBalancerAlone(t *testing.T) {
	c := parse(t, balancing)
	if !c.BalancesAlone() {
		t.Error("a file without listeners is not one of a balancer alone")
	}
	one, three := 1, 3
	want := &Balancer{
		Interfaces: []string{"eth0"}, XDPMode: XDPNative, Forwarding: ForwardL2,
		Reals: []Real{{"node-1", "10.2.0.11", 11, &one}, {"node-2", "10.2.0.12", 12, &three}},
		VIPs: []VIP{
			{Address: "10.9.0.1", Port: 443, Protocols: []Protocol{TCP, UDP}, QUIC: true},
			{Address: "2001:db8::1", Protocols: []Protocol{TCP}, Reals: []string{"node-2"}},
		},
		Health: Health{TCPPort: 443, Interval: time.Second, Timeout: time.Second, Fall: 3, Rise: 2},
	}
	if !reflect.DeepEqual(c.Balancer, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c.Balancer, want)
	}
	if c := parse(t, valid+balancing); c.BalancesAlone() || len(c.Listeners) != 2 {
		t.Error("a balancer beside listeners takes them away")
	}
}

func TestBalancerInTheEnvironment(t *testing.T) {
	if c := parse(t, balancing, "BATON_BALANCER_XDP_MODE=generic", "BATON_BALANCER_HEALTH_FALL=7"); c.Balancer.XDPMode != XDPGeneric || c.Balancer.Health.Fall != 7 {
		t.Errorf("the environment is not heard: %+v", c.Balancer)
	}
	if c := parse(t, valid, "BATON_BALANCER_XDP_MODE=generic"); c.Balancer != nil {
		t.Errorf("an override has made a balancer: %+v", c.Balancer)
	}
}

// A generation has no use for it, and need not know its keys.
func TestBalancerIsNotHandedOver(t *testing.T) {
	c := parse(t, valid+balancing)
	data, err := c.HandOver()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Receive("handed", data); err != nil || got.Balancer != nil || strings.Contains(string(data), "node-1") {
		t.Errorf("a generation got %s, %v", data, err)
	}
	if c.Balancer == nil {
		t.Error("handing over has taken it away")
	}
}

func TestMistakesOfABalancer(t *testing.T) {
	for _, test := range []struct{ name, old, new, want string }{
		{"nothing else in the file", balancing, "node: {name: a}\n",
			"baton.yaml:1: listeners: there is none (write at least one)"},
		{"routes without listeners", "balancer:\n", "routes: []\nupstreams: [{name: a, endpoints: [\"127.0.0.1:1\"]}]\nbalancer:\n",
			"baton.yaml:1: listeners: there is none (write at least one)"},
		{"reclaim", "  health: {tcp_port: 443}", "  reclaim: {mode: off}",
			"baton.yaml:9: balancer.reclaim: reclaim is not built yet (leave it out)"},
		{"firewall", "  health: {tcp_port: 443}", "  firewall: {deny: [203.0.113.0/24]}",
			"baton.yaml:9: balancer.firewall: the firewall is not built yet (leave it out)"},
		{"ipip", "  health: {tcp_port: 443}", "  forwarding: ipip",
			"baton.yaml:9: balancer.forwarding: forwarding ipip is not built yet (write l2)"},
		{"gue", "  health: {tcp_port: 443}", "  forwarding: gue",
			"baton.yaml:9: balancer.forwarding: forwarding gue is not built yet (write l2)"},
		{"forwarding", "  health: {tcp_port: 443}", "  forwarding: l3",
			`baton.yaml:9: balancer.forwarding: unknown forwarding "l3" (did you mean l2?)`},
		{"mode", "  health: {tcp_port: 443}", "  xdp_mode: offload",
			`baton.yaml:9: balancer.xdp_mode: unknown xdp_mode "offload" (write native or generic)`},
		{"misspelled key", "interfaces:", "interfacs:",
			"baton.yaml:2: balancer.interfacs: unknown key (did you mean interfaces?)"},
		{"no interface", "[eth0]", "[]",
			"baton.yaml:2: balancer.interfaces: there is none (write at least one)"},
		{"no name of an interface", "[eth0]", "[eth0, a/b, eth0, abcdefghijklmnop]",
			"baton.yaml:2: balancer.interfaces[1]: \"a/b\" is no name of an interface (ip link lists them)\n" +
				"baton.yaml:2: balancer.interfaces[2]: \"eth0\" is named twice (name it once)\n" +
				`baton.yaml:2: balancer.interfaces[3]: "abcdefghijklmnop" is no name of an interface (ip link lists them)`},
		{"real without an address", "address: 10.2.0.11, ", "",
			`baton.yaml:4: balancer.reals[0].address: is missing (write it as "10.2.0.11")`},
		{"real with a port", "10.2.0.11", `"10.2.0.11:443"`,
			`baton.yaml:4: balancer.reals[0].address: "10.2.0.11:443" is no IP address (write it as "10.2.0.11" or "2001:db8::11")`},
		{"real with every address", "10.2.0.11", "0.0.0.0",
			`baton.yaml:4: balancer.reals[0].address: "0.0.0.0" is not the address of one host (write it as "10.2.0.11" or "2001:db8::11")`},
		{"real in IPv6 form", "10.2.0.11", `"::ffff:10.2.0.11"`,
			`baton.yaml:4: balancer.reals[0].address: "::ffff:10.2.0.11" is an IPv4 address in IPv6 form (write "10.2.0.11")`},
		{"address twice", "10.2.0.12", "10.2.0.11",
			"baton.yaml:5: balancer.reals[1].address: 10.2.0.11 is another real's (see line 4)"},
		{"server_id twice", "server_id: 12", "server_id: 11",
			"baton.yaml:5: balancer.reals[1].server_id: 11 is another real's (see line 4)"},
		{"server_id too large", "server_id: 12", "server_id: 4294967296",
			"baton.yaml:5: balancer.reals[1].server_id: 4294967296 does not fit (write 1 to 4294967295)"},
		{"name twice", "name: node-2", "name: node-1",
			`baton.yaml:5: balancer.reals[1].name: "node-1" is taken (see line 4)`},
		{"weight", "weight: 3", "weight: 65536",
			"baton.yaml:5: balancer.reals[1].weight: 65536 is out of bounds (write 0 to 65535)"},
		{"port", "port: 443,", "port: 65536,",
			"baton.yaml:7: balancer.vips[0].port: 65536 is out of bounds (write 0 to 65535)"},
		{"protocol", "protocols: [tcp]", "protocols: [tcp, sctp]",
			`baton.yaml:8: balancer.vips[1].protocols[1]: unknown protocol "sctp" (write tcp or udp)`},
		{"no protocol", "protocols: [tcp]", "protocols: []",
			"baton.yaml:8: balancer.vips[1].protocols: is empty (write [tcp, udp])"},
		{"VIP twice", "{address: \"2001:db8::1\", port: 0", "{address: 10.9.0.1, port: 443",
			"baton.yaml:8: balancer.vips[1].protocols[0]: tcp port 443 of 10.9.0.1 is served already (see line 7)"},
		{"quic without udp", "protocols: [tcp]", "protocols: [tcp], quic: true",
			"baton.yaml:8: balancer.vips[1].quic: has no meaning without udp (leave it out, or write protocols: [tcp, udp])"},
		{"Katran's without quic", "protocols: [tcp]", "katran_ids: true",
			"baton.yaml:8: balancer.vips[1].katran_ids: has no meaning without quic (leave it out, or write quic: true)"},
		{"unknown real", "reals: [node-2]", "reals: [nod-2]",
			`baton.yaml:8: balancer.vips[1].reals[0]: no real is named "nod-2" (did you mean node-2?)`},
		{"real named twice", "reals: [node-2]", "reals: [node-2, node-2]",
			`baton.yaml:8: balancer.vips[1].reals[1]: "node-2" is named twice (name it once)`},
		{"health", "{tcp_port: 443}", "{tcp_port: 70000, interval: 0s, timeout: 0s, fall: 0, rise: 101, http_path: up}",
			"baton.yaml:9: balancer.health.tcp_port: 70000 is out of bounds (write 0 to 65535)\n" +
				"baton.yaml:9: balancer.health.interval: is 0 (write it as 1s)\n" +
				"baton.yaml:9: balancer.health.timeout: is 0 (write it as 1s)\n" +
				"baton.yaml:9: balancer.health.fall: 0 is out of bounds (write 1 to 100)\n" +
				"baton.yaml:9: balancer.health.rise: 101 is out of bounds (write 1 to 100)\n" +
				`baton.yaml:9: balancer.health.http_path: "up" is no path (write it as "/readyz")`},
		{"path without a port", "{tcp_port: 443}", "{http_path: /readyz}",
			"baton.yaml:9: balancer.health.http_path: has no meaning without tcp_port (name the port that answers)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(balancing, test.old) {
				t.Fatalf("the file has no %q", test.old)
			}
			_, err := Parse("baton.yaml", []byte(strings.Replace(balancing, test.old, test.new, 1)), nil)
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
