package demo

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"
)

// Settings is what differs between the configurations of a node.
type Settings struct {
	// Command starts a generation. Empty means the proxy beside the executable.
	Command []string
	// ReadyTimeout defaults to 10 s, VerifyWindow to 200 ms, and DrainTimeout to
	// 10 s, which is longer than any operation of a [Load] with its defaults.
	ReadyTimeout, VerifyWindow, DrainTimeout time.Duration
	// MaxGenerations defaults to 32: at the cap a drain's deadline is shortened,
	// and a stream of seconds may then be cut.
	MaxGenerations int
	// Steering is auto, bpf or takeover. Empty means bpf.
	Steering string
	// Datagrams adds HTTP/3 and a listener of UDP, which need BPF.
	Datagrams bool
	// Unsteered leaves new flows to the kernel's hash over all generations.
	Unsteered bool
	// Config takes the place of the node's usual configuration: a text/template
	// with these settings, .Node, .Origin and .Admin.
	Config string
}

const usualConfig = `node: {name: demo, server_id: 1}
runtime_dir: {{.Node.Dir}}/run
admin: {socket: {{.Node.Dir}}/run/admin.sock, address: "{{.Admin}}"}
listeners:
  - {name: web, address: "{{.Node.HTTP}}", protocol: http}
  - {name: edge, address: "{{.Node.HTTPS}}", protocol: https, {{if .Datagrams}}http3: true, {{end}}tls: {cert_file: cert.pem, key_file: key.pem}}
  - {name: raw, address: "{{.Node.TCP}}", protocol: tcp}
{{- if .Datagrams}}
  - {name: dgram, address: "{{.Node.UDP}}", protocol: udp, idle_timeout: 1s}
{{- end}}
routes:
  - {name: all, listeners: [web, edge], match: {path_prefix: /}, upstreams: [{name: origin}]}
  - {name: grpc, listeners: [web, edge], match: {path_prefix: /demo.Echo/}, upstreams: [{name: grpc}]}
  - {name: raw, listeners: [raw], upstreams: [{name: echo}]}
{{- if .Datagrams}}
  - {name: dgram, listeners: [dgram], upstreams: [{name: datagrams}]}
{{- end}}
upstreams:
  - {name: origin, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: grpc, protocol: h2c, endpoints: ["{{.Origin.HTTPAddress}}"]}
  - {name: echo, endpoints: ["{{.Origin.EchoAddress}}"]}
{{- if .Datagrams}}
  - {name: datagrams, endpoints: ["{{.Node.DatagramOrigin}}"]}
{{- end}}
{{- if .Command}}
proxy: {command: [{{range $i, $word := .Command}}{{if $i}}, {{end}}{{printf "%q" $word}}{{end}}], baton: false, nonblocking: true}
{{- end}}
release:
  ready_timeout: {{.ReadyTimeout}}
  drain_timeout: {{.DrainTimeout}}
  max_generations: {{.MaxGenerations}}
  verify: {window: {{.VerifyWindow}}}
steering: {{.Steering}}
shutdown: {lead: 0s}
`

// WriteConfig writes a configuration of the node and returns the file's path.
func (n *Node) WriteConfig(name string, s Settings) (string, error) {
	orDefault(&s.ReadyTimeout, 10*time.Second)
	orDefault(&s.VerifyWindow, 200*time.Millisecond)
	orDefault(&s.DrainTimeout, 10*time.Second)
	orDefault(&s.MaxGenerations, 32)
	orDefault(&s.Steering, "bpf")
	config, err := template.New("config").Parse(cmp.Or(s.Config, usualConfig))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = config.Execute(&b, struct {
		Settings
		Node   *Node
		Origin *Origin
		Admin  string
	}{s, n, n.origin, n.admin})
	if err != nil {
		return "", err
	}
	path := filepath.Join(n.Dir, name+".yaml")
	return path, os.WriteFile(path, []byte(b.String()), 0o644)
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}
