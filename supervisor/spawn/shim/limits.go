package shim

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Linux constants that package syscall lacks (include/uapi/linux/audit.h and
// seccomp.h).
const (
	auditArchAMD64 = 0xc000003e
	auditArchI386  = 0x40000003
	auditArchARM64 = 0xc00000b7
	auditArchARM   = 0x40000028

	seccompSetModeFilter       = 1
	seccompFilterFlagSpecAllow = 1 << 2
	seccompAllow               = 0x7fff0000
	seccompErrno               = 0x00050000
)

// Offsets into struct seccomp_data (include/uapi/linux/seccomp.h), of the low
// half of each argument: the architectures below are little endian.
const (
	seccompNumber = 0
	seccompArch   = 4
	seccompPID    = 16 // args[0]
	seccompLimit  = 32 // args[2]
)

// prlimits names prlimit64(2) in the kernel's ways to be called on this machine, and
// the call that loads a filter.
type prlimits struct {
	arch, number               uint32
	other                      uint32 // number of x32 on amd64; elsewhere the same again
	compatArch, compatNumber32 uint32
	seccomp                    uintptr
}

var prlimitOf = map[string]prlimits{
	"amd64": {auditArchAMD64, 302, 1<<30 | 302, auditArchI386, 340, 317},
	"arm64": {auditArchARM64, 261, 261, auditArchARM, 369, 277},
}

// keepLimits keeps this process, and what it starts, from setting resource limits
// of any other process. The kernel lets those of one user do that to each other:
// a generation could leave the next one without descriptors, or have it killed
// for the CPU time it has used. Reading them, and setting one's own, goes on.
// Where the kernel has no seccomp the generations of one user trust each other.
// Decision 019 has the alternatives.
func keepLimits() {
	p, ok := prlimitOf[runtime.GOARCH]
	if !ok {
		return
	}
	load := func(at uint32) syscall.SockFilter {
		return syscall.SockFilter{Code: syscall.BPF_LD | syscall.BPF_W | syscall.BPF_ABS, K: at}
	}
	equal := func(k uint32, yes, no uint8) syscall.SockFilter {
		return syscall.SockFilter{Code: syscall.BPF_JMP | syscall.BPF_JEQ | syscall.BPF_K, Jt: yes, Jf: no, K: k}
	}
	answer := func(k uint32) syscall.SockFilter {
		return syscall.SockFilter{Code: syscall.BPF_RET | syscall.BPF_K, K: k}
	}
	// Jumps count the instructions left out.
	filter := []syscall.SockFilter{
		load(seccompArch),                // 0
		equal(p.arch, 0, 3),              // 1
		load(seccompNumber),              // 2
		equal(p.number, 4, 0),            // 3
		equal(p.other, 3, 10),            // 4
		equal(p.compatArch, 0, 9),        // 5
		load(seccompNumber),              // 6
		equal(p.compatNumber32, 0, 7),    // 7
		load(seccompPID),                 // 8: it is prlimit64
		equal(0, 5, 0),                   // 9
		equal(uint32(os.Getpid()), 4, 0), // 10
		load(seccompLimit),               // 11: null to read
		equal(0, 0, 3),                   // 12
		load(seccompLimit + 4),           // 13
		equal(0, 0, 1),                   // 14
		answer(seccompAllow),             // 15
		answer(seccompErrno | eperm),     // 16
	}
	program := syscall.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Without the flag, older kernels slow down all that runs under a filter.
	syscall.RawSyscall(p.seccomp, seccompSetModeFilter, seccompFilterFlagSpecAllow, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
}

const eperm = uint32(syscall.EPERM)
