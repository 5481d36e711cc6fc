package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// listing is a balancer's file with a long list in place of LIST, of the reals n-0 to
// n-69, "1" and "true".
func listing(vip string) string {
	var reals, flow, block, json strings.Builder
	for i := range 70 {
		fmt.Fprintf(&reals, "    - {name: n-%d, address: 10.2.0.%d}\n", i, i+1)
		fmt.Fprintf(&block, "\n        - n-%d", i)
		sep := ", "
		if i == 0 {
			sep = ""
		}
		fmt.Fprintf(&flow, "%sn-%d", sep, i)
		fmt.Fprintf(&json, "%s%q", sep, fmt.Sprintf("n-%d", i))
	}
	reals.WriteString("    - {name: \"1\", address: 10.2.1.1}\n    - {name: \"true\", address: 10.2.1.2}\n")
	vip = strings.NewReplacer("FLOW", flow.String(), "BLOCK", block.String(), "JSON", json.String(), "LINES", strings.ReplaceAll(flow.String(), ", ", ",\n          ")).Replace(vip)
	return "balancer:\n  interfaces: [eth0]\n  reals:\n" + reals.String() + "  vips:\n" + vip
}

// lists are files with long lists, and whether these are lifted. What a list is
// written like, where it stands and what stands beside it decides; what becomes of
// the file does not.
var lists = map[string]struct {
	vip    string
	lifted bool
}{
	"flow":                     {"    - {address: 10.9.0.1, reals: [FLOW]}\n", true},
	"flow, first":              {"    - {reals: [FLOW], address: 10.9.0.1}\n", true},
	"flow in a block":          {"    - address: 10.9.0.1\n      reals: [FLOW]\n      port: 1\n", true},
	"flow in lines":            {"    - {address: 10.9.0.1, reals: [ LINES ], port: 1}\n", true},
	"flow in lines in a block": {"    - reals: [\n          LINES\n      ]\n      address: 10.9.0.1\n", true},
	"block":                    {"    - address: 10.9.0.1\n      reals:BLOCK\n      port: 1\n", true},
	"block, last":              {"    - address: 10.9.0.1\n      reals:BLOCK", true},
	"block, not indented":      {"    - address: 10.9.0.1\n      reals:" + "\n      - n-1" + strings.Repeat("\n      - n-1", 70) + "\n      port: 1\n", true}, // a mistake
	"block and spaces":         {"    - address: 10.9.0.1\n      reals:  BLOCK  \n    - address: 10.9.0.2\n", true},
	"JSON":                     {"    - {\"address\": \"10.9.0.1\", \"reals\": [JSON]}\n", true},
	"JSON, tight":              {"    - {\"address\":\"10.9.0.1\",\"reals\":[JSON]}\n", true},
	"several":                  {"    - {address: 10.9.0.1, reals: [FLOW]}\n    - {address: 10.9.0.2, reals: [n-1]}\n    - address: 10.9.0.3\n      reals:BLOCK\n    - address: 10.9.0.4\n", true},
	"a comment behind":         {"    - address: 10.9.0.1\n      reals: [FLOW] # all\n", true},
	"in a comment":             {"    - address: 10.9.0.1\n    # reals: [FLOW]\n", true},
	"a comment behind block":   {"    - address: 10.9.0.1\n      reals:BLOCK\n      # reals: x\n", true},

	"short":                     {"    - {address: 10.9.0.1, reals: [n-1, n-2]}\n", false},
	"trailing comma":            {"    - {address: 10.9.0.1, reals: [FLOW,]}\n", false},
	"comment inside":            {"    - {address: 10.9.0.1, reals: [FLOW # x\n  ]}\n", false},
	"comment inside block":      {"    - address: 10.9.0.1\n      reals:BLOCK # x\n        - \"1\"\n", false},
	"a number":                  {"    - {address: 10.9.0.1, reals: [FLOW, 1]}\n", false},
	"a number in quotes":        {"    - {address: 10.9.0.1, reals: [FLOW, \"1\"]}\n", true},
	"true":                      {"    - {address: 10.9.0.1, reals: [FLOW, true]}\n", false},
	"capitals":                  {"    - {address: 10.9.0.1, reals: [FLOW, N-1]}\n", false},
	"an anchor":                 {"    - {address: 10.9.0.1, reals: &a [FLOW]}\n    - {address: 10.9.0.2, reals: *a}\n", false},
	"a tag":                     {"    - {address: 10.9.0.1, reals: !!seq [FLOW]}\n", false},
	"nested":                    {"    - {address: 10.9.0.1, reals: [FLOW, [n-1]]}\n", false},
	"never closed":              {"    - {address: 10.9.0.1, reals: [FLOW\n", false},
	"Windows' ends of lines":    {"    - {address: 10.9.0.1, reals: [FLOW]}\r\n", true},
	"a name in a line too deep": {"    - address: 10.9.0.1\n      reals:BLOCK\n          more\n", true},
	"an item too deep":          {"    - address: 10.9.0.1\n      reals:BLOCK\n          - n-1\n", true},
	"another item behind":       {"    - address: 10.9.0.1\n      reals:BLOCK\n        - 'n-1'\n", false},
	"an item not deep enough":   {"    - address: 10.9.0.1\n      reals:BLOCK\n       - n-1\n", true},

	"unknown":                {"    - {address: 10.9.0.1, reals: [FLOW, m-1]}\n", true},
	"twice":                  {"    - {address: 10.9.0.1, reals: [FLOW, n-1]}\n", true},
	"key twice":              {"    - {address: 10.9.0.1, reals: [FLOW], reals: [n-1]}\n", true},
	"key twice, short first": {"    - {address: 10.9.0.1, reals: [n-1], reals: [FLOW]}\n", true},
	"a digit behind":         {"    - address: 10.9.0.1\n      reals: [FLOW]1\n    - {address: 10.9.0.2, reals: [FLOW]}\n", true},
	"words behind":           {"    - address: 10.9.0.1\n      reals: [FLOW] and more\n", true},
	"words below":            {"    - address: 10.9.0.1\n      reals: [FLOW]\n        and more\n", true},
	"a key of a list":        {"    - address: 10.9.0.1\n      reals: [FLOW]: x\n", true},
	"another key":            {"    - {address: 10.9.0.1, xreals: [FLOW]}\n", true},
	"no space":               {"    - {address: 10.9.0.1, reals:[FLOW]}\n", true},
	"no space in a block":    {"    - address: 10.9.0.1\n      reals:[FLOW]\n", true},
	"quotes, no space":       {"    - address: 10.9.0.1\n      \"reals\":[FLOW]\n", true},
	"a tagged key":           {"    - {address: 10.9.0.1, !a reals: [FLOW]}\n", true},
	"an anchored key":        {"    - {address: 10.9.0.1, &a reals: [FLOW], port: *a}\n", true},
	"in quotes":              {"    - {address: \"reals: [FLOW]\"}\n", true},
	"in a block of text":     {"    - address: |\n        reals: [FLOW]\n", true},
	"in an argument":         {"    - {address: 10.9.0.1}\nproxy: {command: [baton-proxy, \"reals: [FLOW]\"]}\n", true},
	"elsewhere":              {"    - {address: 10.9.0.1}\nreals: [FLOW]\n", true},
	"in a key":               {"    - {address: 10.9.0.1, ? \"reals: [FLOW]\" : x}\n", true},
	"the mark itself":        {"    - {address: 10.9.0.1, reals: [FLOW]}\n    - {address: lifted-list-0-}\n", false},
	"as the reals":           {"    - {address: 10.9.0.1}\n  reals: [FLOW]\n", true},
	"a second document":      {"    - {address: 10.9.0.1, reals: [FLOW]}\n---\na: b\n", true},
}

// sameAsWritten compares what is read with long lists lifted with what is read without.
func sameAsWritten(t *testing.T, data []byte) {
	t.Helper()
	got, gotErr := Parse("baton.yaml", data, nil)
	want, wantErr := parseText("baton.yaml", data, nil, nil)
	if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || !reflect.DeepEqual(got, want) {
		t.Errorf("with lists lifted: %v, %v\nas it was written: %v, %v", got, gotErr, want, wantErr)
	}
	var mistakes Mistakes
	if wantErr != nil && !errors.As(gotErr, &mistakes) {
		t.Errorf("the error is no list of mistakes: %v", gotErr)
	}
}

func TestLongLists(t *testing.T) {
	for name, test := range lists {
		t.Run(name, func(t *testing.T) {
			data := []byte(listing(test.vip))
			if l := lift(data); (l != nil) != test.lifted {
				t.Errorf("lifted: %v", l != nil)
			}
			sameAsWritten(t, data)
		})
	}
}

// That lists are lifted is of use only where the rest is then read.
func TestLongListsAreReadWithout(t *testing.T) {
	for _, name := range []string{"flow", "flow, first", "flow in a block", "flow in lines", "flow in lines in a block", "block", "block, last", "block and spaces", "JSON", "JSON, tight", "several", "a comment behind", "a comment behind block", "a number in quotes", "in a comment"} {
		l := lift([]byte(listing(lists[name].vip)))
		if c, err := parseText("baton.yaml", l.text, l, nil); err != nil || name != "in a comment" && len(c.Balancer.VIPs[0].Reals) < 70 {
			t.Errorf("%s: %v, from\n%s", name, err, l.text)
		}
	}
}

// The words FLOW, BLOCK and so on stand for lists, so that a change beside one is found soon.
func FuzzLongLists(f *testing.F) {
	for _, test := range lists {
		f.Add([]byte(test.vip))
	}
	f.Fuzz(func(t *testing.T, vip []byte) {
		sameAsWritten(t, []byte(listing(string(vip))))
	})
}
