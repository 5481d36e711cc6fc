// Package spawn starts a generation: as its user, without a capability, in its
// cgroup, from a binary that was opened once.
//
// Between the supervisor and the server stands a shim (docs/decisions/004): the supervisor's own
// executable under the name baton-exec, which does what has to be done from
// inside the new process (its pid in LISTEN_PID, the change of user) and then
// becomes the server. It works before main, in this package's init, so that
// the imports of the supervisor cost it nothing.
package spawn

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// shimName is argv[0] of the shim. What follows it:
//
//	binary fd, fd of a socket to the supervisor, uid, gid, argv[0] of the server, its arguments…
const shimName = "baton-exec"

// ShimFailed is the exit status of a shim that could not become the server.
const ShimFailed = 127

func init() {
	if len(os.Args) >= 6 && os.Args[0] == shimName {
		shim(os.Args[1:])
	}
}

// shim never returns. It waits for the supervisor's word that the process is on
// record; a supervisor that dies first takes the shim with it. What goes wrong is
// written to the socket, which the exec of the server closes: the supervisor reads
// a sentence or an end of file.
func shim(args []string) {
	var fds [4]int
	for i := range fds {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			os.Exit(ShimFailed)
		}
		fds[i] = n
	}
	binary, supervisor, uid, gid := fds[0], fds[1], fds[2], fds[3]
	syscall.CloseOnExec(supervisor)
	var word [1]byte
	if n, _ := syscall.Read(supervisor, word[:]); n != 1 {
		os.Exit(ShimFailed)
	}
	err := become(binary, uid, gid, args[4:])
	syscall.Write(supervisor, []byte(err.Error()))
	os.Exit(ShimFailed)
}

// Linux constants that package syscall lacks (include/uapi/linux/prctl.h,
// capability.h).
const (
	prSetNoNewPrivs      = 38
	prCapAmbient         = 47
	prCapAmbientClearAll = 4
	prCapBSetDrop        = 24
	capabilityVersion3   = 0x20080522
)

func become(binary, uid, gid int, argv []string) error {
	// LISTEN_PID is how a server knows that the sockets are meant for it and
	// not for a child of it (sd_listen_fds(3)).
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))

	// The bounding set first: dropping from it needs CAP_SETPCAP. Raw calls
	// change this thread alone, and it is this thread that executes the server.
	if os.Geteuid() == 0 {
		for c := uintptr(0); ; c++ {
			if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prCapBSetDrop, c, 0); errno != 0 {
				break // EINVAL: past the last capability; EPERM: nothing to drop with
			}
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, 0, 0, 0); errno != 0 && errno != syscall.EPERM {
			return fmt.Errorf("drop supplementary groups: %w", errno)
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
			return fmt.Errorf("become group %d: %w", gid, errno)
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			return fmt.Errorf("become user %d: %w", uid, errno)
		}
	}
	syscall.RawSyscall6(syscall.SYS_PRCTL, prCapAmbient, prCapAmbientClearAll, 0, 0, 0, 0)
	// A change to another user has emptied the sets; root staying root keeps them.
	header := struct {
		version uint32
		pid     int32
	}{version: capabilityVersion3}
	var none [6]uint32
	if _, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none)), 0); errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	scope()
	keepLimits()

	// The interpreter of a script opens the descriptor again, by name; an ELF
	// binary is mapped by the exec itself and must not leak into the server.
	var magic [2]byte
	if n, _ := syscall.Pread(binary, magic[:], 0); n != 2 || string(magic[:]) != "#!" {
		syscall.CloseOnExec(binary)
	}
	err := syscall.Exec("/proc/self/fd/"+strconv.Itoa(binary), argv, os.Environ())
	return fmt.Errorf("execute: %w", err)
}
