package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// pair is a file with two listeners on one port or two.
func pair(first, second string) string {
	return fmt.Sprintf(`
listeners:
  - {name: a, protocol: http, address: %s}
  - {name: b, protocol: http, address: %s}
routes:
  - {name: all, listeners: [a, b], upstreams: [{name: origin}]}
upstreams:
  - {name: origin, endpoints: ["127.0.0.1:9001"]}
`, first, second)
}

func TestOverlap(t *testing.T) {
	for _, test := range []struct {
		first, second string
		overlap       bool
	}{
		{`"127.0.0.1:80"`, `"127.0.0.1:80"`, true},
		{`"127.0.0.1:80"`, `"127.0.0.1:81"`, false},
		{`"127.0.0.1:80"`, `"127.0.0.2:80"`, false},
		{`"0.0.0.0:80"`, `"127.0.0.1:80"`, true},
		{`"0.0.0.0:80"`, `"0.0.0.0:80"`, true},
		{`"0.0.0.0:80"`, `"0.0.0.0:81"`, false},
		{`"0.0.0.0:80"`, `"[::1]:80"`, false},
		{`"0.0.0.0:80"`, `"[::]:80"`, false},
		{`"[::]:80"`, `"[::1]:80"`, true},
		{`"[::]:80"`, `"[0:0::0]:80"`, true},
		{`"[::]:80"`, `"127.0.0.1:80"`, false},
		{`"[::]:80", dual_stack: true`, `"127.0.0.1:80"`, true},
		{`"[::]:80", dual_stack: true`, `"0.0.0.0:80"`, true},
		{`"[::]:80", dual_stack: true`, `"[::1]:80"`, true},
		{`"[::]:80", dual_stack: true`, `"127.0.0.1:81"`, false},
		{`"[::1]:80"`, `"[::2]:80"`, false},
		{`"[fe80::1%eth0]:80"`, `"[fe80::1%eth1]:80"`, false},
		{`"[fe80::1%eth0]:80"`, `"[fe80::1]:80"`, true},
		{`"[::]:80"`, `"[fe80::1%eth0]:80"`, true},
		// A mapped address is refused by itself, and still seen to overlap.
		{`"[::ffff:127.0.0.1]:80"`, `"127.0.0.1:80"`, true},
		{`"[::ffff:127.0.0.1]:80"`, `"0.0.0.0:80"`, true},
		{`"[::ffff:127.0.0.1]:80"`, `"[::]:80", dual_stack: true`, true},
		{`"[::ffff:127.0.0.1]:80"`, `"[::]:80"`, false},
	} {
		for _, file := range []string{pair(test.first, test.second), pair(test.second, test.first)} {
			_, err := Parse("baton.yaml", []byte(file), nil)
			if got := err != nil && strings.Contains(err.Error(), "baton.yaml:4: listeners[1].address: ") &&
				strings.Contains(err.Error(), "overlaps listener a"); got != test.overlap {
				t.Errorf("%s and %s: overlap %v, want %v; error: %v", test.first, test.second, got, test.overlap, err)
			}
			if mapped := strings.Contains(file, "ffff"); err != nil && !test.overlap && !mapped {
				t.Errorf("%s and %s: %v", test.first, test.second, err)
			}
		}
	}
}

func TestNoListeners(t *testing.T) {
	_, err := Parse("baton.yaml", []byte("node: {name: edge-1}\n"), nil)
	want := "baton.yaml:1: listeners: there is none (write at least one)"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestEmptyFile(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "null\n"} {
		_, err := Parse("baton.yaml", []byte(text), nil)
		want := "baton.yaml:1: is empty (`baton config default` prints an example)"
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// Each of 16384 listeners may stand alone on its address; one more is refused.
func TestMostListeners(t *testing.T) {
	file := func(n int) []byte {
		var b strings.Builder
		b.WriteString("listeners:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: l%d, protocol: http, address: \"10.0.%d.%d:80\"}\n", i, i/256, i%256)
		}
		b.WriteString("routes:\n  - {name: all, upstreams: [{name: origin}], listeners: [")
		for i := range n {
			fmt.Fprintf(&b, "l%d,", i)
		}
		b.WriteString("]}\nupstreams:\n  - {name: origin, endpoints: [\"127.0.0.1:9001\"]}\n")
		return []byte(b.String())
	}
	if _, err := Parse("baton.yaml", file(16384), nil); err != nil {
		t.Error(err)
	}
	_, err := Parse("baton.yaml", file(16385), nil)
	if want := "baton.yaml:1: listeners: there are 16385 (write at most 16384)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A generation is told the name of each of its sockets in one variable.
func TestNamesFitIntoTheEnvironment(t *testing.T) {
	file := func(workers int) []byte {
		var listeners, names strings.Builder
		for i := range 41 {
			fmt.Fprintf(&listeners, "  - {name: listener-with-a-name-of-fifty-octets-and-number-%02d, protocol: http, address: \"10.0.0.%d:80\", workers: %d}\n", i, i+1, workers)
			fmt.Fprintf(&names, "listener-with-a-name-of-fifty-octets-and-number-%02d, ", i)
		}
		return []byte("listeners:\n" + listeners.String() + "routes: [{name: all, upstreams: [{name: origin}], listeners: [" + names.String() + "]}]\n" +
			"upstreams: [{name: origin, endpoints: [\"127.0.0.1:9001\"]}]\n")
	}
	if _, err := Parse("baton.yaml", file(62), nil); err != nil {
		t.Error(err)
	}
	_, err := Parse("baton.yaml", file(64), nil)
	if want := "baton.yaml:1: listeners: their names, once for each worker, take 133823 octets in LISTEN_FDNAMES"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// All mistakes are told at once, in the order of the lines, with the column.
func TestAllMistakes(t *testing.T) {
	text := strings.NewReplacer(
		"server_id: 42", "server_id: 0",
		"protocol: http", "protocol: htp",
		"steering: auto", "steeering: auto",
	).Replace(valid)
	_, err := Parse("baton.yaml", []byte(text), []string{"BATON_SHUTDOWN_LEAD=x"})
	var found Mistakes
	if !errors.As(err, &found) {
		t.Fatal(err)
	}
	var got []string
	for _, m := range found {
		got = append(got, fmt.Sprintf("%s:%d:%d:%s", m.File, m.Line, m.Column, m.Path))
	}
	want := "$BATON_SHUTDOWN_LEAD:0:0:shutdown.lead baton.yaml:1:33:node.server_id " +
		"baton.yaml:5:54:listeners[0].protocol baton.yaml:15:1:steeering"
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}
