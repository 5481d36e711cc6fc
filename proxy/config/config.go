// Package config is the one schema of Baton's file: what the supervisor and
// every generation of the proxy read.
//
// A Config is immutable once [Load] or [Parse] has returned it: to change the
// configuration is to load another one. Loading is strict. A key that Baton
// does not know, or knows but has not built yet, is a mistake with a line
// number, never a setting that is silently ignored.
package config

import (
	"net/netip"
	"time"
)

// Config is one file, decoded, with defaults filled in.
//
// The doc comments of this file are also the descriptions that [Schema] prints.
type Config struct {
	// Node names this host.
	Node Node `mapstructure:"node" yaml:"node"`
	// RuntimeDir holds the supervisor's sockets and state. Absolute, and short
	// enough that a Unix socket's path fits below it.
	RuntimeDir string `mapstructure:"runtime_dir" yaml:"runtime_dir"`
	// Admin is where operators talk to the supervisor.
	Admin Admin `mapstructure:"admin" yaml:"admin"`
	// ConnectionIDs are how the connection IDs of QUIC are written and read.
	ConnectionIDs ConnectionIDs `mapstructure:"connection_ids" yaml:"connection_ids" json:",omitzero"`
	// Listeners are what the node serves: at least one, at most 16384, no two
	// overlapping. A file of a balancer alone has none, and neither routes nor upstreams.
	Listeners []Listener `mapstructure:"listeners" yaml:"listeners" jsonschema:"maxItems=16384"`
	// Routes lead from listeners to upstreams.
	Routes []Route `mapstructure:"routes" yaml:"routes"`
	// Upstreams are where routes lead.
	Upstreams []Upstream `mapstructure:"upstreams" yaml:"upstreams"`
	// Balancer stands in front of nodes. Absent means none.
	Balancer *Balancer `mapstructure:"balancer" yaml:"balancer,omitempty" json:",omitempty"`
	// Proxy is how a generation is started.
	Proxy Proxy `mapstructure:"proxy" yaml:"proxy"`
	// Release is how one generation replaces another.
	Release Release `mapstructure:"release" yaml:"release"`
	// Steering says who chooses the generation of a new flow.
	Steering Steering `mapstructure:"steering" yaml:"steering"`
	// Traces is what is kept of releases and requests.
	Traces Traces `mapstructure:"traces" yaml:"traces"`
	// Shutdown is the end of the supervisor.
	Shutdown Shutdown `mapstructure:"shutdown" yaml:"shutdown"`
}

// BalancesAlone reports whether the file is one of a balancer alone, which
// serves nothing itself.
func (c *Config) BalancesAlone() bool {
	return c.Balancer != nil && len(c.Listeners)+len(c.Routes)+len(c.Upstreams) == 0
}

// Node names this host.
type Node struct {
	// Name is what traces and status call this host.
	Name string `mapstructure:"name" yaml:"name"`
	// ServerID is what every router on the way reads to find this host. Never 0.
	ServerID uint32 `mapstructure:"server_id" yaml:"server_id" jsonschema:"minimum=1,maximum=4294967295"`
	// TCPOption carries server_id in TCP headers, for balancers that read it there.
	TCPOption TCPOption `mapstructure:"tcp_option" yaml:"tcp_option"`
}

// TCPOption carries server_id in TCP headers, for balancers that read it there.
type TCPOption struct {
	// Tell writes the server_id of this node into the SYN-ACKs of its listeners (kind 0xB6).
	Tell bool `mapstructure:"tell" yaml:"tell"`
	// Echo writes the server_id that an upstream's node has told into every later
	// segment of the connection (kind 0xB7).
	Echo bool `mapstructure:"echo" yaml:"echo"`
	// ByteOrder is network, or host for fleets whose routers read the number as a
	// little-endian machine holds it.
	ByteOrder ByteOrder `mapstructure:"byte_order" yaml:"byte_order"`
}

// ByteOrder is how a number stands on the wire.
type ByteOrder string

// The byte orders.
const (
	NetworkOrder ByteOrder = "network"
	HostOrder    ByteOrder = "host"
)

// ConnectionIDs are how the connection IDs of QUIC are written and read.
type ConnectionIDs struct {
	// KeyFile holds the keys of encrypted ones, by config: a line for each, such as
	// "1 KEY encode". All nodes and balancers of a fleet have the same. A change of what
	// it holds takes effect by itself. Empty means readable ones alone. A relative path
	// begins at the directory of this file.
	KeyFile string `mapstructure:"key_file" yaml:"key_file"`
}

// Admin is where operators talk to the supervisor.
type Admin struct {
	// Socket is a Unix socket for the commands. Empty means admin.sock in runtime_dir.
	Socket string `mapstructure:"socket" yaml:"socket"`
	// Address is IP:port for metrics and health. Empty means none.
	Address string `mapstructure:"address" yaml:"address"`
}

// Protocol is what a listener speaks.
type Protocol string

// The protocols of a listener.
const (
	HTTP  Protocol = "http" // HTTP/1.1, and HTTP/2 from clients that know they may
	HTTPS Protocol = "https"
	TCP   Protocol = "tcp"
	UDP   Protocol = "udp"
)

// HasStreams reports whether clients connect, as they do not with datagrams.
func (p Protocol) HasStreams() bool { return p != UDP }

// IsHTTP reports whether what passes are requests.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTPS }

// WorkerChoice says how a new flow finds one of a generation's workers.
type WorkerChoice string

// The ways to choose a worker.
const (
	// ByHash spreads flows by their 4-tuple.
	ByHash WorkerChoice = "hash"
	// ByCPU keeps a flow on the CPU that received it.
	ByCPU WorkerChoice = "cpu"
)

// Listener is a named address and protocol that the node serves.
type Listener struct {
	// Name is unique among listeners; generations find their sockets by it.
	Name string `mapstructure:"name" yaml:"name" jsonschema:"required"`
	// Address is IP:port; 0.0.0.0 and [::] mean every address of the family.
	Address string `mapstructure:"address" yaml:"address" jsonschema:"required"`
	// Protocol is http, https, tcp or udp. HTTP/1.1 and HTTP/2 share the port.
	Protocol Protocol `mapstructure:"protocol" yaml:"protocol" jsonschema:"required"`
	// TLS is what an https listener shows of itself. https only, and required there.
	TLS TLS `mapstructure:"tls" yaml:"tls,omitempty"`
	// HTTP3 serves HTTP/3 on the same port over UDP, and says so in the responses
	// of the older versions (Alt-Svc). https only.
	HTTP3 bool `mapstructure:"http3" yaml:"http3"`
	// DualStack lets a [::] listener serve IPv4 too. Without it [::] is IPv6 only.
	DualStack bool `mapstructure:"dual_stack" yaml:"dual_stack"`
	// Workers is the number of accept sockets of each generation, 1 to 64.
	Workers int `mapstructure:"workers" yaml:"workers" jsonschema:"minimum=1,maximum=64"`
	// WorkerChoice is hash or cpu.
	WorkerChoice WorkerChoice `mapstructure:"worker_choice" yaml:"worker_choice"`
	// Backlog bounds each worker's accept queue, in connections.
	Backlog int `mapstructure:"backlog" yaml:"backlog" jsonschema:"minimum=1,maximum=2147483647"`
	// MaxConnections bounds the connections a generation holds on this listener. 0 means no bound.
	MaxConnections int `mapstructure:"max_connections" yaml:"max_connections" jsonschema:"minimum=0"`
	// HeaderTimeout bounds the time from the first byte of a request to the end
	// of its head, or to the end of the TLS handshake. 0s means no bound. Not for tcp.
	HeaderTimeout time.Duration `mapstructure:"header_timeout" yaml:"header_timeout"`
	// IdleTimeout closes a keep-alive connection, or a TCP stream, on which
	// nothing moves. 0s means never. Defaults to 75s, and to 0s for tcp,
	// where silence is no sign that a stream is done. A flow of udp ends by it
	// alone: there it defaults to 30s.
	IdleTimeout time.Duration `mapstructure:"idle_timeout" yaml:"idle_timeout"`
	// MaxHeaderBytes bounds a request's head. Not for tcp.
	MaxHeaderBytes Size `mapstructure:"max_header_bytes" yaml:"max_header_bytes"`
	// MaxBodyBytes bounds a request's body. 0B means no bound. Not for tcp.
	MaxBodyBytes Size `mapstructure:"max_body_bytes" yaml:"max_body_bytes"`
	// TrustedProxies are the peers whose X-Forwarded-* headers are kept and
	// appended to. Not for tcp.
	TrustedProxies []netip.Prefix `mapstructure:"trusted_proxies" yaml:"trusted_proxies"`
}

// TLS is a certificate with its private key.
//
// The file names them. Who loads it reads them in, since a generation runs as a
// user that may not: it finds them in the configuration that it is handed.
type TLS struct {
	// CertFile holds the certificate and those that lead to its root, as PEM. A
	// relative path begins at the directory of this file.
	CertFile string `mapstructure:"cert_file" yaml:"cert_file,omitempty"`
	// KeyFile holds the private key of the first certificate, as PEM.
	KeyFile string `mapstructure:"key_file" yaml:"key_file,omitempty"`
	// Certificate is what cert_file holds. Where it is given no file is read.
	Certificate string `mapstructure:"certificate" yaml:"certificate,omitempty"`
	// PrivateKey is what key_file holds. Never printed.
	PrivateKey Secret `mapstructure:"private_key" yaml:"private_key,omitempty"`
}

// Secret is text that neither logs nor %v may show.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "(hidden)" }

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// HasDatagrams reports whether the listener has UDP sockets.
func (l Listener) HasDatagrams() bool { return l.Protocol == UDP || l.HTTP3 }

// AddrPort is the listener's address as [Parse] has accepted it.
func (l Listener) AddrPort() netip.AddrPort {
	ap, _ := netip.ParseAddrPort(l.Address)
	return ap
}

// Route sends what it matches to upstreams, by weight. Among the routes of a
// listener the longest matching host wins, then the longest path prefix, then
// the first in the file.
type Route struct {
	// Name is unique among routes.
	Name string `mapstructure:"name" yaml:"name" jsonschema:"required"`
	// Listeners are the names of the listeners served: tcp ones, or http and https ones.
	Listeners []string `mapstructure:"listeners" yaml:"listeners" jsonschema:"required,minItems=1"`
	// Match holds the conditions; a route of a tcp listener has none.
	Match Match `mapstructure:"match" yaml:"match"`
	// Upstreams share what the route matches.
	Upstreams []Backend `mapstructure:"upstreams" yaml:"upstreams" jsonschema:"required,minItems=1"`
	// Timeout bounds the wait for the response's head. 0s means no bound. Not for tcp.
	Timeout time.Duration `mapstructure:"timeout" yaml:"timeout"`
}

// Match holds the conditions of a route; empty ones match everything.
type Match struct {
	// Hosts are exact names or "*.example.com".
	Hosts []string `mapstructure:"hosts" yaml:"hosts"`
	// Path is the whole path. Not together with path_prefix.
	Path string `mapstructure:"path" yaml:"path"`
	// PathPrefix is the beginning of the path.
	PathPrefix string `mapstructure:"path_prefix" yaml:"path_prefix"`
}

// Backend is an upstream's share of a route.
type Backend struct {
	// Name is the upstream's.
	Name string `mapstructure:"name" yaml:"name" jsonschema:"required"`
	// Weight is the share relative to the other backends of the route. Defaults to 1; 0 means none.
	Weight *int `mapstructure:"weight" yaml:"weight" jsonschema:"minimum=0"`
}

// UpstreamProtocol is what an upstream speaks where requests are sent to it.
type UpstreamProtocol string

// The protocols of an upstream.
const (
	HTTP1 UpstreamProtocol = "http1"
	H2C   UpstreamProtocol = "h2c"
)

// Upstream is a named set of endpoints.
type Upstream struct {
	// Name is unique among upstreams.
	Name string `mapstructure:"name" yaml:"name" jsonschema:"required"`
	// Endpoints are host:port.
	Endpoints []string `mapstructure:"endpoints" yaml:"endpoints" jsonschema:"required,minItems=1"`
	// Protocol is http1, or h2c for servers of HTTP/2 without TLS, as those of gRPC are.
	Protocol UpstreamProtocol `mapstructure:"protocol" yaml:"protocol"`
	// ConnectTimeout bounds a dial to one endpoint. 0s means no bound.
	ConnectTimeout time.Duration `mapstructure:"connect_timeout" yaml:"connect_timeout"`
	// IdleTimeout is how long an unused connection stays in the pool. 0s means for ever.
	IdleTimeout time.Duration `mapstructure:"idle_timeout" yaml:"idle_timeout"`
	// MaxIdle bounds the unused connections kept for each endpoint.
	MaxIdle int `mapstructure:"max_idle" yaml:"max_idle" jsonschema:"minimum=0"`
	// MaxConnections bounds the connections to each endpoint. 0 means no bound.
	MaxConnections int `mapstructure:"max_connections" yaml:"max_connections" jsonschema:"minimum=0"`
}

// Proxy is how a generation is started. Any server that keeps the contract
// of socket activation and readiness notification can be one.
type Proxy struct {
	// Command is the binary and its arguments. A bare name is looked for
	// beside the supervisor's own binary, then in PATH.
	Command []string `mapstructure:"command" yaml:"command" jsonschema:"minItems=1"`
	// User is the account the generation runs as, without any capability.
	User string `mapstructure:"user" yaml:"user"`
	// Nonblocking hands the sockets over with O_NONBLOCK set. Absent, it is what Baton is.
	Nonblocking bool `mapstructure:"nonblocking" yaml:"nonblocking"`
	// Baton passes the BATON_ variables and descriptors, to servers that know them.
	Baton bool `mapstructure:"baton" yaml:"baton"`
}

// Release is how one generation replaces another.
type Release struct {
	// ReadyTimeout is how long a candidate may take to say that it is ready.
	ReadyTimeout time.Duration `mapstructure:"ready_timeout" yaml:"ready_timeout"`
	// Ramp lists the shares of new flows the candidate gets, rising, ending with 100%.
	Ramp []Percent `mapstructure:"ramp" yaml:"ramp" jsonschema:"minItems=1"`
	// Linger is how long an old generation without new flows is left alone while clients are connected to it, before it is told to stop.
	Linger time.Duration `mapstructure:"linger" yaml:"linger"`
	// DrainTimeout is how long an old generation may finish the flows it owns.
	DrainTimeout time.Duration `mapstructure:"drain_timeout" yaml:"drain_timeout"`
	// MaxGenerations bounds the generations alive at once, draining ones included.
	MaxGenerations int `mapstructure:"max_generations" yaml:"max_generations" jsonschema:"minimum=2,maximum=250"`
	// OnInconclusive is what follows when something that the verdict needs was not
	// seen: hold (both generations stay as they are), rollback or pass.
	OnInconclusive string `mapstructure:"on_inconclusive" yaml:"on_inconclusive" jsonschema:"enum=hold,enum=rollback,enum=pass"`
	// Verify is how a candidate is watched before the verdict.
	Verify Verify `mapstructure:"verify" yaml:"verify"`
}

// Verify is how long and how a candidate is watched before the verdict.
type Verify struct {
	// Window is how long each step of the ramp is watched.
	Window time.Duration `mapstructure:"window" yaml:"window"`
	// MaxErrorRate is the share of the candidate's latest flows that may fail
	// before it is rolled back, as long as fewer fail at the generation before.
	// 100% turns the rule off.
	MaxErrorRate Percent `mapstructure:"max_error_rate" yaml:"max_error_rate"`
	// MinFlows is how many flows that rule looks at, and the least it judges by.
	MinFlows int `mapstructure:"min_flows" yaml:"min_flows" jsonschema:"minimum=1,maximum=1000000"`
}

// What happens to a release that is inconclusive.
const (
	Hold     = "hold"
	Rollback = "rollback"
	Pass     = "pass"
)

// Steering says who chooses the generation of a new flow.
type Steering string

// The steering modes.
const (
	SteeringAuto     Steering = "auto"
	SteeringBPF      Steering = "bpf"
	SteeringTakeover Steering = "takeover"
)

// Traces is what is kept of releases and requests. The supervisor reads it when
// it starts.
type Traces struct {
	// Dir holds the releases and the spans, for root alone. Empty means traces in
	// runtime_dir, which on most hosts does not outlive a boot.
	Dir string `mapstructure:"dir" yaml:"dir"`
	// MaxReleases bounds the releases that are kept.
	MaxReleases int `mapstructure:"max_releases" yaml:"max_releases" jsonschema:"minimum=1,maximum=100000"`
	// MaxBytes bounds the files of spans together.
	MaxBytes Size `mapstructure:"max_bytes" yaml:"max_bytes"`
	// MaxAge is how long spans are kept.
	MaxAge time.Duration `mapstructure:"max_age" yaml:"max_age"`
}

// Shutdown is the end of the supervisor.
type Shutdown struct {
	// Lead is how long /readyz fails before anything closes.
	Lead time.Duration `mapstructure:"lead" yaml:"lead"`
}
