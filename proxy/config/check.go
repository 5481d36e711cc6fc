package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// notBuilt are keys that the schema keeps for features to come. A user who
// sets one must learn that it has no effect.
var notBuilt = map[string]string{
	"balancer.reclaim":  "reclaim",
	"balancer.firewall": "the firewall",
}

// checker compares a YAML tree with the types of this package, because the
// decoder's own errors have no line and end at the first. What it refuses it
// takes out of the tree, so that the rest can be decoded and judged too.
type checker struct{ *report }

// value reports whether n can be decoded into a t.
func (c checker) value(n *yaml.Node, t reflect.Type, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		return c.refuse(path, "is a YAML alias", "write the value out")
	case n.ShortTag() == "!!null":
		return c.refuse(path, "has no value", "write one, or leave the key out")
	case isText(t):
		return c.text(n, t, path)
	case t.Kind() == reflect.Struct:
		return c.mapping(n, t, path)
	case t.Kind() == reflect.Slice:
		return c.list(n, t, path)
	default:
		return c.scalar(n, t, path)
	}
}

func (c checker) mapping(n *yaml.Node, t reflect.Type, path string) bool {
	types := map[string]reflect.Type{}
	for _, k := range keysOf(t) {
		types[k.name] = k.typ
	}
	if n.ShortTag() != "!!map" {
		hint := ""
		if _, ok := types["name"]; ok && n.Kind == yaml.ScalarNode {
			hint = "write {name: " + show(n.Value) + "}"
		}
		return c.refuse(path, "must be keys and values, not "+describe(n), hint)
	}
	seen := map[string]int{} // the line of each key
	kept := n.Content[:0]
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		at := position{c.file, name.Line, name.Column}
		below := join(path, printable(name.Value))
		typ, known := types[name.Value]
		first, again := seen[name.Value]
		switch {
		case name.Kind != yaml.ScalarNode || known && name.ShortTag() != "!!str":
			c.addAt(at, path, "has a key that is no plain word", "write name: value")
		case !known:
			c.unknown(at, path, below, name.Value, t)
		case again:
			c.addAt(at, below, "is written twice", fmt.Sprintf("first on line %d", first))
		default:
			seen[name.Value] = name.Line
			if value.Kind == yaml.ScalarNode {
				at = position{c.file, value.Line, value.Column}
			}
			c.written[below] = at
			if c.value(value, typ, below) {
				kept = append(kept, name, value)
			}
		}
	}
	n.Content = kept
	return true
}

func (c checker) unknown(at position, path, below, name string, t reflect.Type) {
	if feature, ok := notBuilt[withoutIndexes(below)]; ok {
		c.addAt(at, below, feature+" is not built yet", "leave it out")
		return
	}
	hint, meant := keyHint(name, t)
	c.addAt(at, below, "unknown key", hint)
	if meant != "" {
		c.refused[join(path, meant)] = true // it is not missing, only misspelled
	}
}

func (c checker) list(n *yaml.Node, t reflect.Type, path string) bool {
	if n.ShortTag() != "!!seq" {
		hint := "begin each entry with a dash"
		if n.Kind == yaml.ScalarNode {
			hint = "write [" + quote(n.Value) + "]"
		}
		return c.refuse(path, "must be a list, not "+describe(n), hint)
	}
	good := true
	for i, elem := range n.Content {
		below := item(path, i)
		c.written[below] = position{c.file, elem.Line, elem.Column}
		switch {
		case c.value(elem, t.Elem(), below):
		case isMapping(t.Elem()):
			// An empty element keeps the indexes of those that follow.
			n.Content[i] = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		default:
			good = false
		}
	}
	if !good {
		c.refused[path] = true
	}
	return good
}

// text checks the types that read text with a form of its own.
func (c checker) text(n *yaml.Node, t reflect.Type, path string) bool {
	unit := map[reflect.Type]string{
		durationType:               "s",
		reflect.TypeFor[Size]():    "B",
		reflect.TypeFor[Percent](): "%",
	}[t]
	switch tag := n.ShortTag(); {
	case unit != "" && (tag == "!!int" || tag == "!!float"):
		return c.refuse(path, show(n.Value)+" has no unit", "write it as "+show(n.Value)+unit)
	case tag != "!!str":
		return c.refuse(path, "must be text, not "+describe(n), "")
	}
	if t == durationType {
		switch d, err := time.ParseDuration(n.Value); {
		case err != nil:
			return c.refuse(path, quote(n.Value)+" is no duration", "write it as 5s, 100ms or 1m30s")
		case d < 0:
			return c.refuse(path, quote(n.Value)+" is negative", "write 0s or more")
		}
		return true
	}
	err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value))
	var unitErr unitError
	switch {
	case errors.As(err, &unitErr):
		return c.refuse(path, unitErr.reason, unitErr.hint)
	case err != nil: // netip.Prefix is the one type that is not ours
		return c.refuse(path, quote(n.Value)+" is no network", "write it as 10.0.0.0/8")
	}
	return true
}

// scalar checks text, numbers and switches. Nothing is converted: a number in
// quotes is text, and text without quotes that looks like a number is one.
func (c checker) scalar(n *yaml.Node, t reflect.Type, path string) bool {
	tag, want, hint := "!!int", "a whole number", ""
	switch t.Kind() {
	case reflect.String:
		tag, want = "!!str", "text"
		if n.Kind == yaml.ScalarNode {
			hint = "write it in quotes: " + quote(n.Value)
		}
	case reflect.Bool:
		tag, want, hint = "!!bool", "true or false", "write true or false"
	default:
		if _, err := strconv.Atoi(n.Value); err == nil && n.ShortTag() == "!!str" {
			hint = "write it without quotes"
		}
	}
	if n.ShortTag() != tag {
		return c.refuse(path, "must be "+want+", not "+describe(n), hint)
	}
	if err := n.Decode(reflect.New(t).Interface()); err != nil {
		if t.Kind() == reflect.Uint32 {
			hint = fmt.Sprintf("write 1 to %d", uint32(math.MaxUint32))
		}
		return c.refuse(path, show(n.Value)+" does not fit", hint)
	}
	return true
}

// describe says what a user has written.
func describe(n *yaml.Node) string {
	switch n.ShortTag() {
	case "!!map":
		return "keys and values"
	case "!!seq":
		return "a list"
	case "!!str":
		return "the text " + quote(n.Value)
	case "!!int", "!!float":
		return "the number " + show(n.Value)
	case "!!bool":
		return show(n.Value)
	case "!!timestamp":
		return "a date"
	default:
		return "a value tagged " + show(n.Tag)
	}
}

func quote(s string) string { return strconv.Quote(shorten(s)) }

// show is text without quotes, unless it needs them to stay on one line.
func show(s string) string {
	s = shorten(s)
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

// shorten keeps a mistake on one line.
func shorten(s string) string {
	const enough = 60
	if runes := []rune(s); len(runes) > enough {
		return string(runes[:enough]) + "…"
	}
	return s
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_-]{1,60}$`)

// printable is a key as a path shows it. Quotes keep a dot in a key from
// looking like a path.
func printable(name string) string {
	if plainKey.MatchString(name) {
		return name
	}
	return quote(name)
}
