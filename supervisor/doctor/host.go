package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/supervisor/cgroup"
)

// examineCgroup looks for this process's cgroup in the version 2 hierarchy,
// wherever that is mounted: on its own, or beside version 1.
func examineCgroup(o Options) []Finding {
	const use = "without it READY=1 is believed from a proxy's main process alone, and its sockets are not guarded"
	mounts, err := o.text("/proc/self/mountinfo")
	if err != nil {
		return one(Fail, err.Error(), "mount /proc")
	}
	self, selfErr := o.text("/proc/self/cgroup")
	dir, err := cgroup.Own(mounts, self)
	if err != nil {
		return one(Warn, err.Error(), "mount -t cgroup2 none /sys/fs/cgroup; "+use)
	}
	if selfErr != nil {
		return one(Warn, selfErr.Error(), use)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return one(Warn, fmt.Sprintf("%s: %v", dir, err), "mount it read-write and delegate it (Delegate=yes); "+use)
	}
	return one(OK, dir+" is writable", "")
}

// examineBPFFS looks where the steering program is pinned.
func examineBPFFS(o Options) []Finding { return examineMount("/sys/fs/bpf", o) }

// examineMount looks for a BPF file system on a directory. Baton mounts it
// itself where it may.
func examineMount(bpffs string, o Options) []Finding {
	var fs unix.Statfs_t
	if err := unix.Statfs(bpffs, &fs); err != nil {
		return one(noBPF, fmt.Sprintf("%s: %v", bpffs, err), "mount sysfs on /sys, and use a kernel with CONFIG_BPF_SYSCALL")
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		status, _ := o.text("/proc/self/status")
		if held, _ := effective(status); held&(1<<unix.CAP_SYS_ADMIN) == 0 {
			return one(noBPF, "no BPF file system on "+bpffs+", and no CAP_SYS_ADMIN to mount one", "mount -t bpf bpf "+bpffs)
		}
		return one(OK, "no BPF file system on "+bpffs+" yet; Baton will mount one", "")
	}
	if err := unix.Access(bpffs, unix.W_OK); err != nil {
		return one(noBPF, fmt.Sprintf("%s: %v", bpffs, err), "mount it read-write, and run as root")
	}
	return one(OK, bpffs+" is writable", "")
}

// sysctls are the settings that can spoil a release.
var sysctls = []struct {
	name  string
	judge func(o Options, value string) (Level, string)
}{
	{"net.ipv4.tcp_abort_on_overflow", func(_ Options, v string) (Level, string) {
		if v != "0" {
			return Fail, "set it to 0: else a full accept queue resets clients instead of letting them try again"
		}
		return OK, ""
	}},
	{"net.ipv4.tcp_syncookies", func(_ Options, v string) (Level, string) {
		switch v {
		case "0":
			return Warn, "set it to 1: else a SYN flood keeps every new client out"
		case "2":
			return Warn, "set it to 1: with 2 every connection is steered twice, and connections lose TCP options"
		}
		return OK, ""
	}},
	{"net.core.somaxconn", func(o Options, v string) (Level, string) {
		limit, err := strconv.Atoi(v)
		if err != nil || o.Config == nil {
			return OK, ""
		}
		for _, l := range o.Config.Listeners {
			if l.Backlog > limit {
				return Warn, fmt.Sprintf("raise it to %d: the kernel cuts the backlog of listener %s", l.Backlog, l.Name)
			}
		}
		return OK, ""
	}},
	{"net.ipv4.ip_local_port_range", func(o Options, v string) (Level, string) {
		var low, high uint16
		if _, err := fmt.Sscan(v, &low, &high); err != nil || o.Config == nil {
			return OK, ""
		}
		reserved, err := o.text("/proc/sys/net/ipv4/ip_local_reserved_ports")
		if err != nil {
			return OK, ""
		}
		for _, l := range o.Config.Listeners {
			if p := l.AddrPort().Port(); p >= low && p <= high && !inPorts(reserved, p) {
				return Warn, fmt.Sprintf("add %d to net.ipv4.ip_local_reserved_ports: an outgoing connection can take the port of listener %s while it is not bound", p, l.Name)
			}
		}
		return OK, ""
	}},
}

func examineSysctls(o Options) []Finding {
	var findings []Finding
	for _, s := range sysctls {
		value, err := o.text("/proc/sys/" + strings.ReplaceAll(s.name, ".", "/"))
		if err != nil {
			findings = append(findings, Finding{s.name, Warn, err.Error(), ""})
			continue
		}
		level, advice := s.judge(o, value)
		findings = append(findings, Finding{s.name, level, strings.Join(strings.Fields(value), " "), advice})
	}
	return findings
}

// inPorts reports whether a list as 8080,9000-9010 has the port.
func inPorts(list string, port uint16) bool {
	for _, item := range strings.Split(list, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(item), "-")
		if !isRange {
			high = low
		}
		l, errL := strconv.ParseUint(low, 10, 16)
		h, errH := strconv.ParseUint(high, 10, 16)
		if errL == nil && errH == nil && uint64(port) >= l && uint64(port) <= h {
			return true
		}
	}
	return false
}

// examineConntrack is silent where connections are not tracked.
func examineConntrack(o Options) []Finding {
	var count, limit uint64
	for path, n := range map[string]*uint64{"count": &count, "max": &limit} {
		s, err := o.text("/proc/sys/net/netfilter/nf_conntrack_" + path)
		if err != nil {
			return nil
		}
		if *n, err = strconv.ParseUint(s, 10, 64); err != nil {
			return nil
		}
	}
	found := fmt.Sprintf("%d of %d connections tracked", count, limit)
	if count > limit/5*4 {
		return one(Warn, found, "raise net.netfilter.nf_conntrack_max: when it is full, new connections are dropped before Baton sees them")
	}
	return one(OK, found, "")
}

// Two generations run at the same time, each a Go process with its buffers.
const enoughMemory = 256 << 20

func examineMemory(o Options) []Finding {
	info, err := o.text("/proc/meminfo")
	if err != nil {
		return one(Warn, err.Error(), "")
	}
	var available int64
	for line := range strings.Lines(info) {
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &available); err == nil {
			break
		}
	}
	available <<= 10
	found := fmt.Sprintf("%d MiB available, pages of %d KiB", available>>20, os.Getpagesize()>>10)
	if available < enoughMemory {
		return one(Warn, found, "free some: during a release two generations run side by side")
	}
	return one(OK, found, "")
}
