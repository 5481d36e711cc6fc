package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/baton-mesh/baton/proxy/config"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the built-in, the resolved configuration, or its schema",
		Long: `Print the built-in, the resolved configuration, or its schema.

BATON_ and a key's path override any scalar that is not in a list:
BATON_RELEASE_DRAIN_TIMEOUT=5s is release.drain_timeout.`,
		RunE: func(*cobra.Command, []string) error {
			return exitError{exitUsage, errors.New("config takes default, show or schema")}
		},
	}
	var file string
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration with every default and the environment applied",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return showConfig(cmd, file) },
	}
	show.Flags().StringVar(&file, "config", "", "configuration `FILE`; without it the built-in example")
	cmd.AddCommand(
		show,
		&cobra.Command{
			Use:   "default",
			Short: "Print the built-in example, in which every key is explained",
			Args:  noArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return printConfig(cmd, config.Example()) },
		},
		&cobra.Command{
			Use:   "schema",
			Short: "Print the JSON Schema, for editors",
			Args:  noArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return printSchema(cmd) },
		},
	)
	return cmd
}

func showConfig(cmd *cobra.Command, file string) error {
	for _, w := range environmentWarnings() {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
	}
	c, err := resolveConfig(file)
	if err != nil {
		return exitError{exitFailed, err}
	}
	text, err := c.Marshal()
	if err != nil {
		return exitError{exitFailed, err}
	}
	return printConfig(cmd, text)
}

// resolveConfig reads a file or, if none is named, the built-in example. The
// environment overrides either.
func resolveConfig(file string) (*config.Config, error) {
	if file == "" {
		return config.Parse("(built in)", config.Example(), os.Environ())
	}
	return config.Load(file)
}

// printConfig prints YAML as it is, comments and all, or as JSON.
func printConfig(cmd *cobra.Command, text []byte) error {
	if output, _ := cmd.Flags().GetString("output"); output == "json" {
		var settings map[string]any
		if err := yaml.Unmarshal(text, &settings); err != nil {
			return exitError{exitFailed, fmt.Errorf("read the configuration back: %w", err)}
		}
		return printed(writeJSON(cmd.OutOrStdout(), settings))
	}
	_, err := cmd.OutOrStdout().Write(text)
	return printed(err)
}

func printSchema(cmd *cobra.Command) error {
	schema, err := config.Schema()
	if err != nil {
		return exitError{exitFailed, err}
	}
	_, err = cmd.OutOrStdout().Write(schema)
	return printed(err)
}
