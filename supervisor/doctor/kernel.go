package doctor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The first kernel whose reuseport programs also choose who inherits the
// connections of a socket that closes (BPF_SK_REUSEPORT_SELECT_OR_MIGRATE).
const minMajor, minMinor = 5, 14

func examineKernel(o Options) []Finding {
	release, err := o.text("/proc/sys/kernel/osrelease")
	if err != nil {
		return one(Fail, err.Error(), "mount /proc")
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return one(Warn, fmt.Sprintf("Linux %s, whose version cannot be read", release), "see whether steering works, below")
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return one(noBPF, "Linux "+release, fmt.Sprintf("Linux %d.%d or later is needed: older ones reset the connections of a socket that closes", minMajor, minMinor))
	}
	return one(OK, "Linux "+release, "")
}

func examineBTF(o Options) []Finding {
	const path = "/sys/kernel/btf/vmlinux"
	if _, err := os.Stat(path); err != nil {
		return one(noBPF, err.Error(), "use a kernel built with CONFIG_DEBUG_INFO_BTF: Baton finds the kernel's fields by it")
	}
	return one(OK, path, "")
}

func examineSteering(o Options) []Finding {
	return examineProgram(o.Steering, "an sk_reuseport program loads")
}

func examineIterator(o Options) []Finding {
	return examineProgram(o.Iterator, "an iter/tcp program loads")
}

func examineProgram(load func() error, loads string) []Finding {
	if load == nil {
		return nil
	}
	err := load()
	switch {
	case err == nil:
		return one(OK, loads, "")
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return one(noBPF, err.Error(), "grant the capabilities above; in a container also allow bpf(2) in the seccomp profile; a locked-down kernel refuses everyone")
	default:
		return one(noBPF, err.Error(), "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_INET")
	}
}

// Commands of membarrier(2), include/uapi/linux/membarrier.h.
const (
	membarrierQuery  = 0
	membarrierGlobal = 1
)

func examineFence(Options) []Finding {
	known, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierQuery, 0, 0)
	if errno != 0 || known&membarrierGlobal == 0 {
		return one(Warn, "membarrier(2) has no global barrier", "none needed: the fence updates a map of maps instead, a little slower; kernels with nohz_full= CPUs are like that")
	}
	return one(OK, "membarrier(2) has a global barrier", "")
}

func examinePidfd(Options) []Finding {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return one(Fail, "pidfd_open: "+err.Error(), "allow pidfd_open(2) in the seccomp profile")
	}
	defer unix.Close(fd)
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_CGROUPID}
	if err := unix.IoctlPidfdInfo(fd, &info); err != nil {
		return one(Warn, "no PIDFD_GET_INFO", "Linux 6.13 has it; before, READY=1 is believed from a generation's main process alone")
	}
	return one(OK, "pidfd_open(2) and PIDFD_GET_INFO", "")
}
