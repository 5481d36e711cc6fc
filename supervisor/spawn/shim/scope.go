package shim

import (
	"syscall"
	"unsafe"
)

// Linux constants that package syscall lacks (include/uapi/linux/landlock.h and
// asm-generic/unistd.h: the numbers are the same on every architecture).
const (
	sysLandlockCreateRuleset = 444
	sysLandlockRestrictSelf  = 446
	landlockScopeSignal      = 1 << 1
)

// scope keeps this process and its children from signalling and tracing any
// other: generations may have the same user, and then nothing else keeps one
// from ending the next. It asks for that alone; files and network stay as they
// are. A kernel before 6.12, or one without Landlock, cannot do it: then the
// generations of one user trust each other.
func scope() {
	rules := struct{ fs, net, scoped uint64 }{scoped: landlockScopeSignal}
	fd, _, errno := syscall.RawSyscall(sysLandlockCreateRuleset, uintptr(unsafe.Pointer(&rules)), unsafe.Sizeof(rules), 0)
	if errno != 0 {
		return
	}
	syscall.RawSyscall(sysLandlockRestrictSelf, fd, 0, 0)
	syscall.Close(int(fd))
}
