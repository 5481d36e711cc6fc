package testnet

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newNamespace makes an empty network namespace that lives as long as the file.
func newNamespace() (*os.File, error) {
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as in Do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("testnet: make a network namespace: %w", err)}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

func netNS(f *os.File) netns.NsHandle { return netns.NsHandle(f.Fd()) }

// checksumInSoftware has the kernel fill in checksums (and cut segments) before
// a packet leaves the interface. A virtual link passes them on unfinished, and
// the packets that an XDP program sends back out would be dropped as damaged.
func checksumInSoftware() error {
	if _, err := ethtool(Interface, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return fmt.Errorf("turn checksum offload of %s off: %w", Interface, err)
	}
	return nil
}

// ethtool is ioctl SIOCETHTOOL with a struct ethtool_value, on an interface of
// the calling thread's namespace.
func ethtool(name string, command, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	v := struct{ command, data uint32 }{command, value}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the kernel copies the whole union
	}{data: unsafe.Pointer(&v)}
	copy(ifreq.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	if errno != 0 {
		return 0, errno
	}
	return v.data, nil
}
