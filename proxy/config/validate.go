package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The values that a choice may take. What is kept for features to come is
// known by name, so that the mistake can say so.
var (
	protocols         = []Protocol{HTTP, HTTPS, TCP, UDP}
	workerChoices     = []WorkerChoice{ByHash, ByCPU}
	upstreamProtocols = []UpstreamProtocol{HTTP1, H2C}
	byteOrders        = []ByteOrder{NetworkOrder, HostOrder}
	steerings         = []Steering{SteeringAuto, SteeringBPF, SteeringTakeover}
	onInconclusive    = []string{Hold, Rollback, Pass}
)

const (
	maxListeners   = 16384
	maxWorkers     = 64
	minGenerations = 2   // the current one and its candidate
	maxGenerations = 250 // of 256 slots; the others are the sink's and the tombstones'
	maxNameLength  = 64
	maxWeight      = 1_000_000
	maxMinFlows    = 1_000_000

	// A Unix socket's path has 108 bytes in the kernel, the last a zero.
	maxSocketPath = 107
	// What the supervisor may put below runtime_dir before a path is too long.
	maxBelowRuntimeDir = 32

	maxPath   = 4000
	minTraces = Size(1 << 20)
)

// validator checks what a type cannot say. Where a value was refused before,
// it says nothing.
type validator struct {
	*report
	c *Config
}

func (v validator) all() {
	v.node()
	v.proxy()
	v.release()
	v.traces()
	choice(v, "steering", "steering", v.c.Steering, steerings, nil)
	v.admin()
	v.balancer()
	if !v.c.BalancesAlone() || v.isRefused("listeners") || v.isRefused("routes") || v.isRefused("upstreams") {
		upstreams := v.upstreams()
		v.routes(v.listeners(), upstreams)
	}
}

func (v validator) node() {
	v.name("node.name", v.c.Node.Name)
	if v.c.Node.ServerID == 0 {
		v.add("node.server_id", "is 0", "write a number that no other node has")
	}
	option := v.c.Node.TCPOption
	choice(v, "node.tcp_option.byte_order", "byte order", option.ByteOrder, byteOrders, nil)
	if (option.Tell || option.Echo) && v.c.Steering == SteeringTakeover {
		v.add("node.tcp_option", "needs BPF programs, which steering: takeover does without", "write steering: auto or bpf")
	}
	v.absolute("runtime_dir", v.c.RuntimeDir, maxSocketPath-maxBelowRuntimeDir)
}

func (v validator) admin() {
	// The default is as good as runtime_dir, which has been judged.
	if _, written := v.written["admin.socket"]; written {
		v.absolute("admin.socket", v.c.Admin.Socket, maxSocketPath)
	}
	if v.c.Admin.Address == "" {
		return
	}
	const address = "admin.address"
	ap, ok := v.address(address, v.c.Admin.Address)
	if !ok {
		return
	}
	// net.Listen opens [::] for both families, so this one is dual.
	mine := bound{ap, true, true, false}
	for i, l := range v.c.Listeners {
		if theirs, ok := boundBy(l); ok && mine.overlaps(theirs) {
			v.add(address, fmt.Sprintf("overlaps listener %s, %s", show(l.Name), show(l.Address)), v.onLine(item("listeners", i)))
		}
	}
}

// absolute checks a path: of a Unix socket, of what will hold one, or of a directory.
func (v validator) absolute(path, file string, limit int) {
	switch {
	case !filepath.IsAbs(file):
		v.add(path, quote(file)+" is no absolute path", "begin it with /")
	case strings.ContainsRune(file, 0):
		v.add(path, "has a zero byte", "leave it out")
	case len(file) > limit:
		v.add(path, fmt.Sprintf("has %d bytes, too many for a Unix socket", len(file)), fmt.Sprintf("write at most %d", limit))
	}
}

func (v validator) proxy() {
	const path = "proxy.command"
	if command := v.c.Proxy.Command; len(command) == 0 || command[0] == "" {
		v.add(path, "is empty", "write [baton-proxy]")
	} else if slices.ContainsFunc(command, func(arg string) bool { return strings.ContainsRune(arg, 0) }) {
		v.add(path, "has an argument with a zero byte", "leave it out")
	}
}

func (v validator) release() {
	r := v.c.Release
	if r.ReadyTimeout == 0 {
		v.add("release.ready_timeout", "is 0", "write it as 10s")
	}
	if r.DrainTimeout == 0 {
		v.add("release.drain_timeout", "is 0", "write it as 60s")
	}
	v.bounds("release.max_generations", r.MaxGenerations, minGenerations, maxGenerations)
	choice(v, "release.on_inconclusive", "value", r.OnInconclusive, onInconclusive, nil)

	v.bounds("release.verify.min_flows", r.Verify.MinFlows, 1, maxMinFlows)

	const ramp = "release.ramp"
	if len(r.Ramp) == 0 {
		v.add(ramp, "is empty", `write ["100%"]`)
		return
	}
	for i := 1; i < len(r.Ramp); i++ {
		if r.Ramp[i] <= r.Ramp[i-1] {
			v.add(item(ramp, i), fmt.Sprintf("%s does not rise above %s", r.Ramp[i], r.Ramp[i-1]), "write rising shares")
		}
	}
	if last := len(r.Ramp) - 1; r.Ramp[last] != 1 {
		v.add(item(ramp, last), fmt.Sprintf("the ramp ends with %s", r.Ramp[last]), "end it with 100%")
	}
}

func (v validator) traces() {
	t := v.c.Traces
	if t.Dir != "" {
		v.absolute("traces.dir", t.Dir, maxPath)
	}
	v.bounds("traces.max_releases", t.MaxReleases, 1, 100_000)
	if t.MaxBytes < minTraces {
		v.add("traces.max_bytes", "is too little", "write at least 1MiB")
	}
	if t.MaxAge == 0 {
		v.add("traces.max_age", "is 0", "write it as 720h")
	}
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)

// name checks a name: it becomes a label, a path, an item of LISTEN_FDNAMES.
func (v validator) name(path, name string) {
	switch {
	case name == "":
		v.add(path, "is missing", "give it one")
	case len(name) > maxNameLength:
		v.add(path, fmt.Sprintf("has %d characters", len(name)), fmt.Sprintf("write at most %d", maxNameLength))
	case !namePattern.MatchString(name):
		v.add(path, quote(name)+" is no name", "write a-z, 0-9 and, inside, dots, dashes and underscores")
	}
}

// names is where each name of a list stands.
type names struct {
	index map[string]int
	list  []string
	// complete is false when a name was refused, is missing or is another's:
	// what refers to the one meant is then not to blame.
	complete bool
}

// names checks the names of a list.
func (v validator) names(path string, count int, name func(int) string) names {
	known := names{map[string]int{}, nil, !v.isRefused(path)}
	for i := range count {
		at := item(path, i) + ".name"
		if v.isRefused(at) {
			known.complete = false
			continue
		}
		v.name(at, name(i))
		if first, ok := known.index[name(i)]; ok {
			v.add(at, quote(name(i))+" is taken", v.onLine(item(path, first)))
			known.complete = false
		} else if name(i) == "" {
			known.complete = false
		} else {
			known.index[name(i)] = i
			known.list = append(known.list, name(i))
		}
	}
	return known
}

// find looks up a reference to a name of a list.
func (v validator) find(path, what, name string, in names) (int, bool) {
	i, ok := in.index[name]
	if !ok && in.complete {
		v.add(path, fmt.Sprintf("no %s is named %s", what, quote(name)), didYouMean(name, in.list))
	}
	return i, ok
}

// onLine is a hint that leads to another key.
func (v validator) onLine(path string) string {
	return fmt.Sprintf("see line %d", v.report.find(path).line)
}

func (v validator) bounds(path string, n, low, high int) {
	if n < low || n > high {
		v.add(path, fmt.Sprintf("%d is out of bounds", n), fmt.Sprintf("write %d to %d", low, high))
	}
}

func (v validator) notNegative(path string, n int) {
	if n < 0 {
		v.add(path, fmt.Sprintf("%d is negative", n), "write 0 or more")
	}
}

// choice checks a value that must be one of a few.
func choice[S ~string](v validator, path, what string, value S, now, later []S) {
	switch {
	case slices.Contains(now, value):
	case slices.Contains(later, value):
		v.add(path, fmt.Sprintf("%s %s is not built yet", what, value), "write "+strings.Join(text(now), " or "))
	case value == "":
		v.add(path, "is missing", "write "+strings.Join(text(now), " or "))
	default:
		v.add(path, fmt.Sprintf("unknown %s %s", what, quote(string(value))), didYouMean(string(value), text(now)))
	}
}

// address checks an address to listen on.
func (v validator) address(path, address string) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(address)
	switch {
	case address == "":
		v.add(path, "is missing", `write it as "127.0.0.1:8080"`)
	case err != nil:
		v.add(path, quote(address)+" is no IP:port", `write it as "127.0.0.1:8080" or "[::1]:8080"`)
	case ap.Port() == 0:
		v.add(path, "port 0 is no port to listen on", "write 1 to 65535")
	case ap.Addr().Is4In6():
		v.add(path, quote(address)+" is an IPv4 address in IPv6 form", "write "+strconv.Quote(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()))
	default:
		return ap, true
	}
	return ap, false
}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?$`)

// isHost reports whether s is an IP address or may be a name.
func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || len(s) < 254 && hostPattern.MatchString(s)
}

// isEndpoint reports whether s is host:port.
func isEndpoint(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && isHost(host)
}
