package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// Load reads a file and lets the environment of this process override it. The
// error is [Mistakes] if the file could be read.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, os.Environ())
}

// Parse reads a configuration, fills in every default and validates the whole.
// The name stands for the file in mistakes. The variables in env, given as
// os.Environ gives them, override scalars; a generation passes nil, because
// what it gets was resolved by the supervisor. Files that it names are read,
// from the directory of the name where their paths are relative. The error is [Mistakes], with
// all of them at once.
func Parse(name string, data []byte, env []string) (*Config, error) {
	if short := lift(data); short != nil {
		if c, err := parseText(name, short.text, short, env); err == nil {
			return c, nil
		}
		// What is wrong is said of the file as it was written.
	}
	return parseText(name, data, nil, env)
}

// errLifted is a file that cannot be read without its lists.
var errLifted = errors.New("a list was lifted that is no VIP's")

// parseText is Parse of a text from which lists may have been lifted.
func parseText(name string, data []byte, short *lifted, env []string) (*Config, error) {
	c := checker{newReport(name)}
	root := c.document(data)
	if root == nil {
		return nil, c.sorted()
	}
	var listOf map[int]int
	if short != nil {
		var ok bool
		if listOf, ok = short.takeFrom(root); !ok {
			return nil, errLifted
		}
	}
	if !c.value(root, configType, "") {
		return nil, c.sorted()
	}
	overrides := c.environment(env)
	config, err := decode(root, overrides)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err) // the checker has missed something
	}
	for vip, n := range listOf {
		config.Balancer.VIPs[vip].Reals = short.lists[n]
	}
	readCertificates(c.report, config, filepath.Dir(name))
	readIDKeys(c.report, config, filepath.Dir(name))
	validator{c.report, config}.all()
	if len(c.mistakes) > 0 {
		return nil, c.sorted()
	}
	return config, nil
}

// document reads the one YAML document that a file holds.
func (c checker) document(data []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF) || err == nil && doc.Content[0].ShortTag() == "!!null":
		c.refuse("", "is empty", "`baton config default` prints an example")
		return nil
	case err != nil:
		c.syntax(err, data)
		return nil
	}
	switch err := decoder.Decode(&more); {
	case err == nil:
		c.addAt(position{c.file, more.Line, more.Column}, "", "holds more than one document", "remove the line ---")
	case !errors.Is(err, io.EOF):
		c.syntax(err, data)
		return nil
	}
	return doc.Content[0]
}

// delimiter joins keys for viper. Its default, a dot, may be part of a name.
const delimiter = "::"

// decode merges defaults, file and overrides, and decodes the result. The
// viper is a fresh one each time, for it is neither safe for concurrent use
// nor able to forget.
func decode(root *yaml.Node, overrides map[string]any) (*Config, error) {
	var settings map[string]any
	if err := root.Decode(&settings); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	fillElements(settings)

	v := viper.NewWithOptions(viper.KeyDelimiter(delimiter))
	defaults := Default()
	defaults.Admin.Socket = "" // follows runtime_dir, which is not known yet
	for key, value := range settingsOf(defaults) {
		v.SetDefault(key, value)
	}
	if err := v.MergeConfigMap(settings); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	for path, value := range overrides {
		if _, ok := settings["balancer"]; !ok && strings.HasPrefix(path, "balancer.") {
			continue // there is none to override anything of
		}
		v.Set(strings.ReplaceAll(path, ".", delimiter), value)
	}

	// A server that does not know Baton may well accept with blocking calls.
	v.SetDefault("proxy"+delimiter+"nonblocking", v.GetBool("proxy"+delimiter+"baton"))

	c := new(Config)
	err := v.UnmarshalExact(c, func(d *mapstructure.DecoderConfig) {
		d.WeaklyTypedInput = false
		d.DecodeHook = mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(),
			mapstructure.TextUnmarshallerHookFunc(),
		)
	})
	if err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	if c.Admin.Socket == "" {
		c.Admin.Socket = adminSocket(c.RuntimeDir)
	}
	// An empty list means what an absent one does; nil for both makes equal
	// configurations equal.
	for i := range c.Listeners {
		c.Listeners[i].TrustedProxies = noneIfEmpty(c.Listeners[i].TrustedProxies)
	}
	if c.Balancer != nil {
		for i := range c.Balancer.VIPs {
			c.Balancer.VIPs[i].Reals = noneIfEmpty(c.Balancer.VIPs[i].Reals)
		}
	}
	for i := range c.Routes {
		c.Routes[i].Match.Hosts = noneIfEmpty(c.Routes[i].Match.Hosts)
	}
	return c, nil
}

func noneIfEmpty[E any](list []E) []E {
	if len(list) == 0 {
		return nil
	}
	return list
}

// Marshal writes the configuration as YAML for people. [Parse] reads it back to
// an equal one as long as the certificate files have not changed. It holds no
// private key.
func (c *Config) Marshal() ([]byte, error) {
	shown := *c
	shown.Listeners = slices.Clone(c.Listeners)
	for i := range shown.Listeners {
		shown.Listeners[i].TLS = shown.Listeners[i].TLS.printable()
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(shown), encoder.Close()); err != nil {
		return nil, fmt.Errorf("marshal configuration: %w", err)
	}
	return b.Bytes(), nil
}
