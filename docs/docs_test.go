package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/baton-mesh/baton/proxy/config"
)

// page is one Markdown file.
type page struct {
	path string // from here
	text string
}

// pages is every page of the repository.
func pages(t *testing.T) []page {
	t.Helper()
	var all []page
	for _, pattern := range []string{"../*.md", "*.md", "decisions/*.md", "../bpf/*.md", "../deploy/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			all = append(all, page{path, read(t, path)})
		}
	}
	if len(all) < 10 {
		t.Fatalf("%d pages found: the patterns above miss some", len(all))
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// line is the number of the line at an offset, for a failure to point to.
func (p page) line(offset int) string {
	return fmt.Sprintf("%s:%d", p.path, 1+strings.Count(p.text[:offset], "\n"))
}

var fence = regexp.MustCompile("(?ms)^```yaml([^\n]*)\n(.*?)^```$")

// A configuration shown is one that Baton accepts. Each is whole: a part of one
// could not be checked, and a reader could not try it.
func TestConfigurationsAreValid(t *testing.T) {
	shown := 0
	for _, p := range pages(t) {
		for _, m := range fence.FindAllStringSubmatchIndex(p.text, -1) {
			at, kind, text := p.line(m[0]), p.text[m[2]:m[3]], p.text[m[4]:m[5]]
			if kind != " config" {
				t.Errorf("%s: mark the block as ```yaml config, so that it is checked", at)
				continue
			}
			shown++
			if _, err := config.Parse(at, []byte(text), nil); err != nil {
				t.Error(err)
			}
		}
	}
	if shown == 0 {
		t.Error("no configuration is shown anywhere")
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors is what can be linked to in a page, as GitHub names it.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		all[strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

func TestLinksResolve(t *testing.T) {
	for _, p := range pages(t) {
		for _, m := range link.FindAllStringSubmatchIndex(p.text, -1) {
			to := p.text[m[2]:m[3]]
			if strings.Contains(to, "://") {
				continue
			}
			file, anchor, _ := strings.Cut(to, "#")
			target := p.path
			if file != "" {
				target = filepath.Join(filepath.Dir(p.path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", p.line(m[0]), to, err)
				continue
			}
			if anchor != "" && !anchors(read(t, target))[anchor] {
				t.Errorf("%s: %s has no heading for #%s", p.line(m[0]), target, anchor)
			}
		}
	}
}

var (
	namedTest = regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*`)
	namedFile = regexp.MustCompile("`([a-z]+/[\\w/.-]+\\.(?:go|c|h|txtar|service|yaml))`")
	declared  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
)

// A promise names the test that proves it, and an explanation the file it
// explains: both must be there.
func TestTestsAndFilesExist(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range declared.FindAllStringSubmatch(read(t, path), -1) {
				tests[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		for _, m := range namedTest.FindAllStringIndex(p.text, -1) {
			if name := p.text[m[0]:m[1]]; !tests[name] {
				t.Errorf("%s: there is no test %s", p.line(m[0]), name)
			}
		}
		for _, m := range namedFile.FindAllStringSubmatchIndex(p.text, -1) {
			if file := p.text[m[2]:m[3]]; !exists(filepath.Join("..", file)) {
				t.Errorf("%s: there is no file %s", p.line(m[0]), file)
			}
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// row is a line of the reference: | `key` | `default` | meaning |
var row = regexp.MustCompile("(?m)^\\| `([a-z0-9_.\\[\\]]+)` \\| (.+?) \\| ")

// minimal holds what has no default and nothing else.
const minimal = `
listeners: [{name: web, address: "127.0.0.1:8080", protocol: http}]
routes: [{name: all, listeners: [web], upstreams: [{name: origin}]}]
upstreams: [{name: origin, endpoints: ["127.0.0.1:9001"]}]
balancer: {interfaces: [eth0], reals: [{name: a, address: 10.2.0.11}], vips: [{address: 10.9.0.1}]}
`

// The reference has every key of the schema, no other, and the true default.
func TestReferenceIsComplete(t *testing.T) {
	text, err := config.Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root schema
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{} // whether required
	root.leaves("", keys)

	c, err := config.Parse("minimal", []byte(minimal), nil)
	if err != nil {
		t.Fatal(err)
	}
	resolved, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var settings any
	if err := yaml.Unmarshal(resolved, &settings); err != nil {
		t.Fatal(err)
	}

	for _, m := range row.FindAllStringSubmatch(read(t, "configuration.md"), -1) {
		key, shown := m[1], m[2]
		required, ok := keys[key]
		if !ok {
			t.Errorf("configuration.md explains %s, which the schema does not have or explains already", key)
			continue
		}
		delete(keys, key)
		want := "required"
		if !required {
			want = "`" + defaultOf(t, settings, key) + "`"
		}
		// A default that depends on something is said in words after it.
		if shown != want && !strings.HasPrefix(shown, want+",") {
			t.Errorf("configuration.md gives %s as the default of %s; it is %s", shown, key, want)
		}
	}
	for key := range keys {
		t.Errorf("configuration.md does not explain %s", key)
	}
}

// schema is what these tests need of a JSON Schema.
type schema struct {
	Properties map[string]*schema `json:"properties"`
	Required   []string           `json:"required"`
	Items      *schema            `json:"items"`
}

// leaves collects the keys that hold values, as listeners[].name.
func (s *schema) leaves(path string, keys map[string]bool) {
	for name, below := range s.Properties {
		at := strings.TrimPrefix(path+"."+name, ".")
		switch {
		case below.Items != nil && below.Items.Properties != nil:
			below.Items.leaves(at+"[]", keys)
		case below.Properties != nil:
			below.leaves(at, keys)
		default:
			keys[at] = slices.Contains(s.Required, name)
		}
	}
}

// defaultOf looks a key up in settings, in the first element of each list.
func defaultOf(t *testing.T, settings any, key string) string {
	t.Helper()
	for _, name := range strings.Split(key, ".") {
		if settings == nil {
			return `""` // only text is left out where it is empty
		}
		name, isList := strings.CutSuffix(name, "[]")
		m, ok := settings.(map[string]any)
		if !ok {
			t.Fatalf("%s: no keys above %s", key, name)
		}
		settings = m[name]
		if isList {
			settings = settings.([]any)[0]
		}
	}
	switch v := settings.(type) {
	case []any:
		words := make([]string, len(v))
		for i, e := range v {
			words[i] = fmt.Sprint(e)
		}
		return "[" + strings.Join(words, ", ") + "]"
	case string:
		if v == "" {
			return `""`
		}
	}
	return fmt.Sprint(settings)
}

var (
	metric = regexp.MustCompile(`\bbaton_[a-z_]+\b`)
	desc   = regexp.MustCompile(`NewDesc\("(baton_[a-z_]+)"`)
)

func TestMetricsAreListed(t *testing.T) {
	exported := map[string]bool{}
	files, err := filepath.Glob("../supervisor/admin/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		for _, m := range desc.FindAllStringSubmatch(read(t, file), -1) {
			exported[m[1]] = false
		}
	}
	if len(exported) == 0 {
		t.Fatal("no metric found in supervisor/admin")
	}
	for _, name := range metric.FindAllString(read(t, "operations.md"), -1) {
		if _, ok := exported[name]; !ok {
			t.Errorf("operations.md lists %s, which is not exported", name)
		}
		exported[name] = true
	}
	for name, listed := range exported {
		if !listed {
			t.Errorf("operations.md does not list %s", name)
		}
	}
}

var (
	attributeName = regexp.MustCompile(`"(baton\.[a-z_.]+)"`)
	inPlace       = regexp.MustCompile(`(?:attribute\.\w+|AddEvent|TextValue|IntValue)\("baton\.[a-z_.]+"`)
)

// The table of tracing.md has every attribute and event that the code writes, and
// no other; names are written in one file.
func TestAttributesAreListed(t *testing.T) {
	const source = "../supervisor/trace/attributes.go"
	used := map[string]bool{}
	for _, m := range attributeName.FindAllStringSubmatch(read(t, source), -1) {
		used[m[1]] = false
	}
	if len(used) == 0 {
		t.Fatal("no attribute found in attributes.go")
	}
	for _, m := range regexp.MustCompile("`(baton\\.[a-z_.]+)`").FindAllStringSubmatch(read(t, "tracing.md"), -1) {
		if _, ok := used[m[1]]; !ok {
			t.Errorf("tracing.md explains %s, which the code does not have", m[1])
		}
		used[m[1]] = true
	}
	for name, listed := range used {
		if !listed {
			t.Errorf("tracing.md does not explain %s", name)
		}
	}
	err := filepath.WalkDir("../supervisor", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && path != source {
			for _, m := range inPlace.FindAllString(read(t, path), -1) {
				t.Errorf("%s writes %s: name it in attributes.go", path, m)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
