package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
)

// files stands in for /proc and /sys.
type files map[string]string

func (f files) read(path string) ([]byte, error) {
	text, ok := f[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text + "\n"), nil
}

func TestFindings(t *testing.T) {
	const sys = "/proc/sys/net/"
	withPort := func(address string, backlog int) *config.Config {
		return &config.Config{Listeners: []config.Listener{{Name: "web", Address: address, Backlog: backlog}}}
	}
	// The sysctls that are examined, as a fresh host has them.
	sysctl := func(name, value string) files {
		f := files{
			sys + "ipv4/tcp_abort_on_overflow": "0", sys + "ipv4/tcp_syncookies": "1", sys + "core/somaxconn": "4096",
			sys + "ipv4/ip_local_port_range": "32768\t60999", sys + "ipv4/ip_local_reserved_ports": "",
		}
		if name != "" {
			f[sys+name] = value
		}
		return f
	}
	status := func(caps string) files { return files{"/proc/self/status": "Name:\tx\nCapEff:\t" + caps + "\n"} }
	for _, test := range []struct {
		name    string
		examine func(Options) []Finding
		files   files
		config  *config.Config
		want    Level  // the worst
		advice  string // a part of some advice
	}{
		{name: "new kernel", examine: examineKernel, files: files{"/proc/sys/kernel/osrelease": "6.18.44-x"}, want: OK},
		{name: "oldest kernel", examine: examineKernel, files: files{"/proc/sys/kernel/osrelease": "5.14.0"}, want: OK},
		{name: "old kernel", examine: examineKernel, files: files{"/proc/sys/kernel/osrelease": "5.13.19"}, want: noBPF, advice: "5.14"},
		{name: "older kernel", examine: examineKernel, files: files{"/proc/sys/kernel/osrelease": "4.19.0"}, want: noBPF, advice: "5.14"},
		{name: "strange kernel", examine: examineKernel, files: files{"/proc/sys/kernel/osrelease": "next"}, want: Warn},
		{name: "no /proc", examine: examineKernel, want: Fail, advice: "/proc"},

		{name: "root", examine: examineCapabilities, files: status("000001ffffffffff"), want: OK},
		{name: "nobody", examine: examineCapabilities, files: status("0000000000000000"), want: noBPF, advice: "CAP_BPF"},
		{name: "all but ptrace", examine: examineCapabilities, files: status("000001fffff7ffff"), want: Warn, advice: "CAP_SYS_PTRACE"},
		{name: "all but bpf", examine: examineCapabilities, files: status("0000017fffffffff"), want: noBPF, advice: "grant CAP_BPF: Baton needs it to load"},

		{name: "fresh sysctls", examine: examineSysctls, files: sysctl("", ""), config: withPort("127.0.0.1:8080", 4096), want: OK},
		{name: "resets on overflow", examine: examineSysctls, files: sysctl("ipv4/tcp_abort_on_overflow", "1"), want: Fail, advice: "set it to 0"},
		{name: "no cookies", examine: examineSysctls, files: sysctl("ipv4/tcp_syncookies", "0"), want: Warn, advice: "flood"},
		{name: "cookies always", examine: examineSysctls, files: sysctl("ipv4/tcp_syncookies", "2"), want: Warn, advice: "twice"},
		{name: "backlog cut", examine: examineSysctls, files: sysctl("core/somaxconn", "128"), config: withPort("127.0.0.1:80", 129), want: Warn, advice: "raise it to 129"},
		{name: "backlog fits", examine: examineSysctls, files: sysctl("core/somaxconn", "128"), config: withPort("127.0.0.1:80", 128), want: OK},
		{name: "ephemeral port", examine: examineSysctls, files: sysctl("", ""), config: withPort("127.0.0.1:32768", 1), want: Warn, advice: "add 32768"},
		{name: "reserved port", examine: examineSysctls, files: sysctl("ipv4/ip_local_reserved_ports", "80,32000-33000"), config: withPort("127.0.0.1:32768", 1), want: OK},
		{name: "sysctl missing", examine: examineSysctls, want: Warn},

		{name: "conntrack full", examine: examineConntrack, files: files{sys + "netfilter/nf_conntrack_count": "81", sys + "netfilter/nf_conntrack_max": "100"}, want: Warn, advice: "nf_conntrack_max"},
		{name: "conntrack empty", examine: examineConntrack, files: files{sys + "netfilter/nf_conntrack_count": "80", sys + "netfilter/nf_conntrack_max": "100"}, want: OK},

		{name: "little memory", examine: examineMemory, files: files{"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  262143 kB"}, want: Warn, advice: "generations"},
		{name: "memory", examine: examineMemory, files: files{"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  262144 kB"}, want: OK},

		{name: "no cgroup2", examine: examineCgroup, files: files{"/proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"}, want: Warn, advice: "mount -t cgroup2"},
		{name: "cgroup gone", examine: examineCgroup, files: files{"/proc/self/mountinfo": "30 24 0:26 / /nowhere rw - cgroup2 cgroup2 rw", "/proc/self/cgroup": "0::/a"}, want: Warn, advice: "Delegate"},

		{name: "binary and user missing", examine: examineProxy, config: &config.Config{Proxy: config.Proxy{Command: []string{"/nowhere/proxy"}, User: "no such user"}}, want: Fail, advice: "proxy.command"},
	} {
		t.Run(test.name, func(t *testing.T) {
			findings := test.examine(Options{Config: test.config, readFile: test.files.read})
			worst, advice := OK, ""
			for _, f := range findings {
				if f.Level == Fail || worst == OK {
					worst = f.Level
				}
				advice += f.Advice + "\n"
			}
			if len(findings) == 0 || worst != test.want {
				t.Errorf("findings %+v, want the worst to be %s", findings, test.want)
			}
			if !strings.Contains(advice, test.advice) {
				t.Errorf("advice %q, want one with %q", advice, test.advice)
			}
		})
	}
}

// Where no BPF file system is mounted, all depends on the right to mount one.
func TestBPFFSThatIsNotMounted(t *testing.T) {
	for caps, want := range map[string]Level{"000001ffffffffff": OK, "000001ffffdfffff": noBPF} {
		f := files{"/proc/self/status": "CapEff:\t" + caps}
		if got := examineMount(t.TempDir(), Options{readFile: f.read}); len(got) != 1 || got[0].Level != want {
			t.Errorf("capabilities %s: %+v, want %s", caps, got, want)
		}
	}
}

func TestProgramsAreTried(t *testing.T) {
	for _, test := range []struct {
		err    error
		want   Level
		advice string
	}{
		{nil, OK, ""},
		{fmt.Errorf("load: %w", unix.EPERM), Fail, "seccomp"},
		{fmt.Errorf("load: %w", unix.EINVAL), Fail, "CONFIG_BPF"},
	} {
		tried := 0
		try := func() error { tried++; return test.err }
		r := Run(Options{Steering: try, Iterator: try, Config: &config.Config{Steering: config.SteeringBPF}})
		if tried != 2 {
			t.Errorf("%d programs tried, want both", tried)
		}
		for _, f := range r.Findings {
			if f.Name == "steering" && (f.Level != test.want || !strings.Contains(f.Advice, test.advice)) {
				t.Errorf("program that answers %v: %+v", test.err, f)
			}
		}
		if test.err != nil && r.Healthy {
			t.Errorf("healthy though the program answers %v", test.err)
		}
	}
}

func TestListeners(t *testing.T) {
	for _, test := range []struct {
		name      string
		reusePort bool
		close     bool
		want      Level
		found     string
	}{
		{name: "held", want: Fail, found: "without SO_REUSEPORT"},
		{name: "held and shared", reusePort: true, want: Fail, found: "with SO_REUSEPORT"},
		{name: "free", close: true, want: OK, found: "is free"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := listen(t, test.reusePort)
			if test.close {
				l.Close()
			}
			f := examine(t, l.Addr().String())
			if f.Level != test.want || !strings.Contains(f.Found, test.found) {
				t.Errorf("%+v, want %s with %q", f, test.want, test.found)
			}
			if f.Level == Fail && !strings.Contains(f.Found, fmt.Sprintf("(pid %d)", os.Getpid())) {
				t.Errorf("%+v does not name this process", f)
			}
		})
	}
}

// examine looks at one listener, with no supervisor there.
func examine(t *testing.T, address string) Finding {
	t.Helper()
	findings := examineListeners(Options{Config: &config.Config{Listeners: []config.Listener{{Name: "web", Address: address}}}})
	if len(findings) != 1 {
		t.Fatalf("%+v, want one", findings)
	}
	return findings[0]
}

// What the running supervisor holds is no obstacle to it.
func TestListenersOfTheRunningSupervisor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	admin, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	l := listen(t, true)
	o := Options{Config: &config.Config{
		Admin:     config.Admin{Socket: socket},
		Listeners: []config.Listener{{Name: "web", Address: l.Addr().String()}},
	}}
	findings := examineListeners(o)
	if len(findings) != 1 || findings[0].Level != OK || !strings.Contains(findings[0].Found, "the baton that runs") {
		t.Errorf("%+v, want one that is ok", findings)
	}
	admin.Close()
	if findings = examineListeners(o); findings[0].Level != Fail {
		t.Errorf("without a supervisor: %+v, want a failure", findings)
	}
}

func TestAddressOfAnotherHost(t *testing.T) {
	f := examine(t, "192.0.2.1:8080")
	if f.Level != Fail || !strings.Contains(f.Advice, "interface") {
		t.Errorf("%+v, want advice on the interface", f)
	}
}

func TestBoundButNotListening(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	f := examine(t, address)
	if f.Level != Fail || !strings.Contains(f.Advice, "only bound") {
		t.Errorf("%+v, want the advice on a bound socket", f)
	}
}

// Where BPF is not to be had Baton runs all the same, unless it was asked for.
func TestMode(t *testing.T) {
	bad := func() error { return unix.EPERM }
	for want, test := range map[config.Steering]struct {
		level Level
		found string
	}{
		"":                      {Warn, "takeover: "},
		config.SteeringAuto:     {Warn, "takeover: "},
		config.SteeringTakeover: {OK, "takeover, as the configuration says"},
		config.SteeringBPF:      {Fail, "this machine cannot"},
	} {
		o := Options{Steering: bad}
		if want != "" {
			o.Config = &config.Config{Steering: want}
		}
		r := Run(o)
		if f := r.Findings[0]; f.Name != "mode" || f.Level != test.level || !strings.Contains(f.Found, test.found) {
			t.Errorf("steering %q: %+v", want, f)
		}
		for _, f := range r.Findings {
			if f.Level == noBPF || f.Name == "steering" && (f.Level == Fail) != (want == config.SteeringBPF) {
				t.Errorf("steering %q: %+v", want, f)
			}
		}
		if want == config.SteeringBPF && r.Healthy {
			t.Errorf("steering %q: healthy", want)
		}
	}
}

// On any machine a report is whole: each finding has a name and what was found,
// what is wrong has advice, and the JSON says the same.
func TestReport(t *testing.T) {
	bad := func() error { return errors.New("no such thing") }
	r := Run(Options{Steering: bad, Config: &config.Config{Steering: config.SteeringBPF}})
	if r.Healthy {
		t.Error("healthy though steering fails")
	}
	for _, f := range r.Findings {
		if f.Name == "" || f.Found == "" || f.Level == Fail && f.Advice == "" {
			t.Errorf("finding is not whole: %+v", f)
		}
	}
	var text strings.Builder
	if _, err := r.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "fail  steering") || !strings.Contains(text.String(), "→ use a kernel with CONFIG_BPF") {
		t.Errorf("the text lacks the failure:\n%s", &text)
	}
	encoded, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(encoded, &back); err != nil || back.Healthy || len(back.Findings) != len(r.Findings) {
		t.Errorf("JSON %s, %v", encoded, err)
	}
}

func listen(t *testing.T, reusePort bool) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		c.Control(func(fd uintptr) {
			if reusePort {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}
		})
		return err
	}}
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
