package config

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/baton-mesh/baton/proxy/contract"
)

// envPrefix begins the name of every variable that overrides a key:
// BATON_RELEASE_DRAIN_TIMEOUT is release.drain_timeout.
const envPrefix = "BATON_"

// envKeys maps the variables to the paths they override: every scalar that is
// not in a list, for an environment has no way to name an element.
func envKeys() map[string]key {
	keys := map[string]key{}
	walk(configType, "", func(path string, t reflect.Type) {
		if isMapping(t) || t.Kind() == reflect.Slice || strings.Contains(path, "[]") {
			return
		}
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
		keys[name] = key{path, t}
	})
	return keys
}

// environment checks the variables in env and returns what they override, by path.
func (c checker) environment(env []string) map[string]any {
	keys, overrides := envKeys(), map[string]any{}
	for _, assignment := range env {
		name, value, _ := strings.Cut(assignment, "=")
		k, ok := keys[name]
		if !ok {
			continue
		}
		// A variable is checked as the same characters would be in the file,
		// but that text needs no quotes.
		n := &yaml.Node{Kind: yaml.ScalarNode, Value: value}
		if k.typ.Kind() == reflect.String {
			n.Tag = "!!str"
		}
		c.written[k.name] = position{file: "$" + name}
		var v any
		if c.value(n, k.typ, k.name) && n.Decode(&v) == nil {
			overrides[k.name] = v
		}
	}
	return overrides
}

// UnknownEnv returns the names in env, given as os.Environ gives it, that
// begin with BATON_ and mean nothing, neither here nor to a generation. They
// are no mistakes, since another program may own them, but worth a warning.
func UnknownEnv(env []string) []string {
	ours := []string{contract.EnvGenerationID, contract.EnvSlot, contract.EnvServerID, contract.EnvConfigFD, contract.EnvKeysFD}
	keys := envKeys()
	var unknown []string
	for _, assignment := range env {
		name, _, _ := strings.Cut(assignment, "=")
		if _, known := keys[name]; strings.HasPrefix(name, envPrefix) && !known && !slices.Contains(ours, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return slices.Compact(unknown)
}
