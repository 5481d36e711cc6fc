package testnet

import (
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AnswersByXDP lets an XDP program on the host's link, in native mode, send
// packets back out of it: the kernel drops what a program sends into a virtual
// link whose other end has none (drivers/net/veth.c). For hosts of [New].
func (h *Host) AnswersByXDP(t testing.TB) {
	t.Helper()
	fd, err := loadPass()
	if err != nil {
		t.Fatalf("testnet: load an XDP program: %v", err)
	}
	defer unix.Close(fd) // its link has it
	err = doIn(h.hub, func() error {
		port, err := netlink.LinkByName(h.port)
		if err != nil {
			return err
		}
		return netlink.LinkSetXdpFdWithFlags(port, fd, nl.XDP_FLAGS_DRV_MODE)
	})
	if err != nil {
		t.Fatalf("testnet: attach an XDP program to the switch's end of host %s: %v", h.Name, err)
	}
}

// loadPass loads a program that lets everything pass. Two instructions are not
// worth a compiled object.
func loadPass() (int, error) {
	program := [...]uint64{
		0x00000002_0000_00b7, // r0 = XDP_PASS
		0x00000000_0000_0095, // exit
	}
	licence := [...]byte{'B', 'S', 'D', 0}
	attr := struct { // union bpf_attr, for BPF_PROG_LOAD
		kind, length     uint32
		program, licence uint64
		_                [96]byte
	}{kind: unix.BPF_PROG_TYPE_XDP, length: uint32(len(program)),
		program: uint64(uintptr(unsafe.Pointer(&program))), licence: uint64(uintptr(unsafe.Pointer(&licence)))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&licence)
	if errno != 0 {
		return -1, fmt.Errorf("bpf(BPF_PROG_LOAD): %w", errno)
	}
	return int(fd), nil
}
