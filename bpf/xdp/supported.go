package xdp

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The first kernel that replaces many inner maps with one call (9263dddc7b6f, "bpf:
// Extend batch operations for map-in-map bpf-maps"). bpf_loop came with 5.17, programs
// that take frames in several buffers with 5.18.
const minMajor, minMinor = 5, 19

// ErrNoPlace is that the program could not be tried, for there is no BPF file system.
var ErrNoPlace = errors.New("no BPF file system on /sys/fs/bpf")

// Supported loads the program and writes a ring, attached to nothing and pinned for no
// longer than that takes, and forgets both.
func Supported() error {
	dir, err := os.MkdirTemp("/sys/fs/bpf", "baton-doctor-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoPlace, err)
	}
	defer os.RemoveAll(dir)
	b, err := Open(Options{Dir: dir, RingSize: 251})
	if err != nil {
		return err
	}
	return errors.Join(b.SetRings([]uint32{0}, func(uint32, []uint32) {}), b.Close())
}

// explained says of an error that the kernel is too old, where it is: its own words
// seldom tell an operator what to do. A version alone is no reason to refuse, for
// distributions put into older kernels what newer ones have.
func explained(err error) error {
	if err == nil {
		return nil
	}
	release, readErr := os.ReadFile("/proc/sys/kernel/osrelease")
	if readErr != nil {
		return err
	}
	return explainedFor(err, string(release))
}

func explainedFor(err error, release string) error {
	var major, minor int
	_, scanErr := fmt.Sscanf(release, "%d.%d", &major, &minor)
	if scanErr != nil || major > minMajor || major == minMajor && minor >= minMinor || errors.Is(err, unix.EPERM) {
		return err
	}
	return fmt.Errorf("the balancer needs Linux %d.%d or later, and this is %d.%d: %w", minMajor, minMinor, major, minor, err)
}
