package config

import (
	"encoding"
	"reflect"
	"slices"
	"strings"
	"time"
)

// key is one key of a mapping: its name in the file and the type it takes.
type key struct {
	name string
	typ  reflect.Type
}

// keysOf is the keys that a struct takes, in the order of its fields.
func keysOf(t reflect.Type) []key {
	keys := make([]key, 0, t.NumField())
	for f := range t.Fields() {
		typ := f.Type
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		keys = append(keys, key{yamlName(f.Tag), typ})
	}
	return keys
}

// yamlName is the key that a field is written as.
func yamlName(tag reflect.StructTag) string {
	name, _, _ := strings.Cut(tag.Get("yaml"), ",")
	return name
}

// walk visits every key below t, a list's elements as listeners[].name.
func walk(t reflect.Type, path string, visit func(path string, t reflect.Type)) {
	for _, k := range keysOf(t) {
		below := join(path, k.name)
		visit(below, k.typ)
		switch {
		case isText(k.typ):
		case k.typ.Kind() == reflect.Struct:
			walk(k.typ, below, visit)
		case k.typ.Kind() == reflect.Slice && isMapping(k.typ.Elem()):
			walk(k.typ.Elem(), below+"[]", visit)
		}
	}
}

var (
	configType       = reflect.TypeFor[Config]()
	durationType     = reflect.TypeFor[time.Duration]()
	textUnmarshaller = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isText reports whether values of t are written as text with a form of its own.
func isText(t reflect.Type) bool {
	return t == durationType || reflect.PointerTo(t).Implements(textUnmarshaller)
}

// isMapping reports whether values of t are written as keys and values.
func isMapping(t reflect.Type) bool { return t.Kind() == reflect.Struct && !isText(t) }

// withoutIndexes is a path as walk gives it: listeners[] for listeners[2].
func withoutIndexes(path string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(path, "[")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		b.WriteString("[]")
		_, path, _ = strings.Cut(rest, "]")
	}
}

// keyHint says what an unknown key may have been meant to be, and the name of
// the key beside it that it resembles, if any.
func keyHint(unknown string, t reflect.Type) (hint, meant string) {
	var names []string
	for _, k := range keysOf(t) {
		names = append(names, k.name)
	}
	if meant = nearest(unknown, names); meant != "" {
		return "did you mean " + meant + "?", meant
	}
	var elsewhere string
	walk(configType, "", func(path string, _ reflect.Type) {
		if elsewhere == "" && strings.HasSuffix("."+path, "."+unknown) {
			elsewhere = path
		}
	})
	if elsewhere != "" {
		return "did you mean " + elsewhere + "?", ""
	}
	return "known here: " + strings.Join(names, ", "), ""
}

// didYouMean is a hint for a name that should have been one of known.
func didYouMean(name string, known []string) string {
	if near := nearest(name, known); near != "" {
		return "did you mean " + show(near) + "?"
	}
	const enough = 8
	var some []string
	for _, k := range known[:min(len(known), enough)] {
		some = append(some, show(k))
	}
	switch {
	case len(known) == 0:
		return ""
	case len(known) > enough:
		return "write one of " + strings.Join(some, ", ") + ", …"
	}
	return "write " + strings.Join(some, " or ")
}

// nearest is the known name that a typing mistake most likely made into name,
// or "". A third of a name may be wrong: more is another word.
func nearest(name string, known []string) string {
	if len(name) > maxNameLength {
		return "" // nothing known is as long, and the distance takes quadratic time
	}
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	best, bestDistance := "", max(1, len(name)/3)+1
	for _, k := range known {
		if d := distance(name, strings.ReplaceAll(k, "-", "_")); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is how many letters must be put in, taken out, replaced or swapped
// with their neighbour to turn a into b.
func distance(a, b string) int {
	// d[i][j] is the distance of the first i letters of a from the first j of b.
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			d[i][j] = min(replaced, d[i][j-1]+1, d[i-1][j]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// text turns a list of named strings into strings.
func text[S ~string](list []S) []string {
	return slices.Collect(func(yield func(string) bool) {
		for _, s := range list {
			if !yield(string(s)) {
				return
			}
		}
	})
}
