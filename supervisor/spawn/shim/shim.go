// Package shim is what runs between the supervisor's fork and the server's first
// instruction (docs/decisions/004): the supervisor's own executable under the name
// baton-exec, which does what has to be done from inside the new process (its pid in
// LISTEN_PID, the change of user) and then becomes the server.
//
// It works in its init. Go initializes packages in the order of their paths, each
// once all that it imports are: so this one imports a few of the standard library
// alone, or it would run after most of what the supervisor imports, milliseconds
// later in each start. TestShimComesFirst holds that.
package shim

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// Name is argv[0] of the shim. What follows it:
//
//	binary fd, fd of a socket to the supervisor, uid, gid, argv[0] of the server, its arguments…
const Name = "baton-exec"

// Failed is the exit status of a shim that could not become the server.
const Failed = 127

func init() {
	if len(os.Args) >= 6 && os.Args[0] == Name {
		run(os.Args[1:])
	}
}

// run never returns. It waits for the supervisor's word that the process is on
// record; a supervisor that dies first takes the shim with it. What goes wrong is
// written to the socket, which the exec of the server closes: the supervisor reads
// a sentence or an end of file.
func run(args []string) {
	var fds [4]int
	for i := range fds {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			os.Exit(Failed)
		}
		fds[i] = n
	}
	binary, supervisor, uid, gid := fds[0], fds[1], fds[2], fds[3]
	syscall.CloseOnExec(supervisor)
	var word [1]byte
	if n, _ := syscall.Read(supervisor, word[:]); n != 1 {
		os.Exit(Failed)
	}
	err := become(binary, uid, gid, args[4:])
	syscall.Write(supervisor, []byte(err.Error()))
	os.Exit(Failed)
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
			return errors.New("drop supplementary groups: " + errno.Error())
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
			return errors.New("become group " + strconv.Itoa(gid) + ": " + errno.Error())
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			return errors.New("become user " + strconv.Itoa(uid) + ": " + errno.Error())
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
		return errors.New("drop capabilities: " + errno.Error())
	}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0); errno != 0 {
		return errors.New("set no_new_privs: " + errno.Error())
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
	return errors.New("execute: " + err.Error())
}
