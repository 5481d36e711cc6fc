package doctor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

// capabilities is what the supervisor uses, and what it uses it for. The proxy
// itself runs without any.
var capabilities = []struct {
	number uint
	name   string
	lack   Level
	use    string
}{
	{unix.CAP_BPF, "CAP_BPF", noBPF, "load the steering program"},
	{unix.CAP_PERFMON, "CAP_PERFMON", noBPF, "read accept queues by a BPF iterator"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", noBPF, "guard the sockets of a generation against itself"},
	{unix.CAP_SETUID, "CAP_SETUID", noBPF, "run the proxy as proxy.user"},
	{unix.CAP_SETGID, "CAP_SETGID", noBPF, "run the proxy as proxy.user"},
	{unix.CAP_KILL, "CAP_KILL", noBPF, "signal a proxy of another user"},
	{unix.CAP_SETPCAP, "CAP_SETPCAP", Warn, "empty the proxy's bounding set"},
	{unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", Warn, "listen below port 1024"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", Warn, "name the process that holds a port"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", Warn, "name the process that holds a port"},
}

// Missing says which capabilities this process lacks without which Baton does
// not steer by BPF and run generations as another user, and what to do. Nil: none.
func Missing() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	held, err := effective(string(status))
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range capabilities {
		if c.lack != Warn && held&(1<<c.number) == 0 {
			missing = append(missing, fmt.Sprintf("%s (to %s)", c.name, c.use))
		}
	}
	switch {
	case len(missing) == 0 && ofNamespace():
		return errors.New("this process is root in a user namespace alone, and the kernel takes BPF from the host's root")
	case len(missing) == 0:
		return nil
	}
	return fmt.Errorf("this process lacks %s: run baton as root, or grant it", strings.Join(missing, ", "))
}

// ofNamespace reports whether the capabilities are those of a user namespace that has
// not all users of the host, so not the host's own (user_namespaces(7)).
func ofNamespace() bool {
	users, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(users)), " ") != "0 0 4294967295"
}

func examineCapabilities(o Options) []Finding {
	status, err := o.text("/proc/self/status")
	if err != nil {
		return one(Fail, err.Error(), "mount /proc")
	}
	held, err := effective(status)
	if err != nil {
		return one(Fail, err.Error(), "")
	}
	var missing []Finding
	for _, c := range capabilities {
		if held&(1<<c.number) == 0 {
			missing = append(missing, Finding{Level: c.lack, Found: "no " + c.name, Advice: "grant " + c.name + ": Baton needs it to " + c.use})
		}
	}
	if len(missing) == 0 {
		return one(OK, "all that Baton uses", "")
	}
	return missing
}

// effective reads the CapEff line of /proc/PID/status.
func effective(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if mask, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no CapEff")
}

// A connection costs the proxy two descriptors.
const enoughFiles = 65536

// otherFiles is what a supervisor has open beside listening sockets, at the least.
const otherFiles = 64

// Files says why a supervisor of this configuration would run out of descriptors before
// it has released anything: half of what it opens would fail, and it would take the one
// for a lack of this kernel's and the other for an end of its generations.
func Files(c *config.Config) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if need := otherFiles + (Options{Config: c}).listeningFiles(); limit.Max < need {
		return fmt.Errorf("at most %d open files a process, and a release of this configuration takes %d: raise the limit (ulimit -Hn, LimitNOFILE=)", limit.Max, need)
	}
	return nil
}

// listeningFiles is how many descriptors the supervisor has during a release for
// listening sockets: a sink each, and a worker's each in two generations.
func (o Options) listeningFiles() (n uint64) {
	if o.Config != nil {
		for _, l := range o.Config.Listeners {
			n += 1 + 2*uint64(l.Workers)
		}
	}
	return n
}

func examineFiles(o Options) []Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return one(Warn, "getrlimit: "+err.Error(), "")
	}
	// The hard limit counts: every Go program raises its own to that.
	if need := o.listeningFiles(); limit.Max < need {
		return one(Fail, fmt.Sprintf("at most %d open files a process, and the listeners alone take %d while two generations live", limit.Max, need),
			"raise the limit (ulimit -Hn, LimitNOFILE=), or have fewer listeners or workers")
	}
	if limit.Max < enoughFiles {
		return one(Warn, fmt.Sprintf("at most %d open files a process", limit.Max), fmt.Sprintf("raise the limit (ulimit -Hn, LimitNOFILE=) to %d or more: a connection takes two", enoughFiles))
	}
	return one(OK, fmt.Sprintf("%d open files a process", limit.Max), "")
}
