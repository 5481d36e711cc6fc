package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// node is what the tests read of a JSON Schema.
type node struct {
	Type                 string
	Description          string
	Pattern              string
	Enum                 []string
	Required             []string
	Properties           map[string]node
	Items                *node
	AdditionalProperties *bool
}

func schemaRoot(t *testing.T) node {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	return root
}

// follow finds the schema of a path such as listeners[].name.
func (n node) follow(path string) (node, bool) {
	for _, name := range strings.Split(path, ".") {
		name, list := strings.CutSuffix(name, "[]")
		below, ok := n.Properties[name]
		if !ok || list && below.Items == nil {
			return node{}, false
		}
		if n = below; list {
			n = *below.Items
		}
	}
	return n, true
}

func TestSchemaHasEveryKey(t *testing.T) {
	root := schemaRoot(t)
	walk(configType, "", func(path string, typ reflect.Type) {
		n, ok := root.follow(path)
		name := path[strings.LastIndex(path, ".")+1:]
		switch {
		case !ok:
			t.Errorf("the schema has no %s", path)
		case !strings.HasPrefix(n.Description, name+" "):
			t.Errorf("%s is described as %q", path, n.Description)
		case n.Type == "object" && (n.AdditionalProperties == nil || *n.AdditionalProperties):
			t.Errorf("%s takes keys that Parse refuses", path)
		}
	})
	if root.AdditionalProperties == nil || *root.AdditionalProperties {
		t.Error("the file takes keys that Parse refuses")
	}
}

func TestSchemaTakesWhatParseTakes(t *testing.T) {
	for _, text := range []string{string(Example()), everything} {
		var file any
		if err := yaml.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		if err := schemaRoot(t).takes("", file); err != nil {
			t.Error(err)
		}
	}
}

// takes checks a value against the parts of JSON Schema that the tests read.
func (n node) takes(path string, value any) error {
	is := map[string]bool{}
	switch v := value.(type) {
	case map[string]any:
		is["object"] = true
		for _, name := range n.Required {
			if _, ok := v[name]; !ok {
				return fmt.Errorf("%s has no %s", path, name)
			}
		}
		for name, below := range v {
			schema, ok := n.Properties[name]
			if !ok {
				return fmt.Errorf("%s has an unknown %s", path, name)
			}
			if err := schema.takes(join(path, name), below); err != nil {
				return err
			}
		}
	case []any:
		is["array"] = true
		for i, elem := range v {
			if err := n.Items.takes(item(path, i), elem); err != nil {
				return err
			}
		}
	case string:
		is["string"] = true
		if n.Enum != nil && !slices.Contains(n.Enum, v) {
			return fmt.Errorf("%s is %q, not one of %q", path, v, n.Enum)
		}
		if n.Pattern != "" && !regexp.MustCompile(n.Pattern).MatchString(v) {
			return fmt.Errorf("%s is %q, not of the form %s", path, v, n.Pattern)
		}
	case bool:
		is["boolean"] = true
	case int:
		is["integer"] = true
	}
	if !is[n.Type] {
		return fmt.Errorf("%s is %v, no %s", path, value, n.Type)
	}
	return nil
}

func TestSchemaRefuses(t *testing.T) {
	root := schemaRoot(t)
	for path, values := range map[string][]any{
		"release.drain_timeout":        {5, "5", "5 s", "-5s", ""},
		"listeners[].max_header_bytes": {5, "5KB", "-5B"},
		"listeners[].protocol":         {"sctp"},
		"listeners[].worker_choice":    {"random"},
		"steering":                     {"hash"},
		"release.on_inconclusive":      {"retry"},
		"listeners[]":                  {map[string]any{"name": "web"}},
		"node":                         {map[string]any{"Name": "web"}},
	} {
		n, ok := root.follow(path)
		if !ok {
			t.Errorf("the schema has no %s", path)
			continue
		}
		for _, value := range values {
			if n.takes(path, value) == nil {
				t.Errorf("%s takes %v", path, value)
			}
		}
	}
}
