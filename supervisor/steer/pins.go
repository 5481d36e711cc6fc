package steer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
)

// bpffs is where BPF objects are pinned.
const bpffs = "/sys/fs/bpf"

// Pins is the directory for an instance's pins, below the BPF file system.
func Pins(instance string) string { return filepath.Join(bpffs, "baton", instance) }

// MountPins is [Pins], and mounts the BPF file system where there is none. The error
// is that of statfs(2) or mount(2).
func MountPins(instance string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(bpffs, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", bpffs, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
			return "", fmt.Errorf("mount the BPF file system on %s: %w", bpffs, err)
		}
	}
	return Pins(instance), nil
}

// openNode opens the tables: again, those of an earlier supervisor, which its
// generations are in, from their pins or from its keeper, or else fresh ones.
func openNode(pins string, again bool, kept map[string]int) (_ *reuseport.Node, fresh bool, err error) {
	if again && pins != "" {
		n, err := reuseport.Reopen(pins)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	if again {
		n, err := reuseport.Regain(pins, kept)
		if !errors.Is(err, os.ErrNotExist) {
			return n, false, err
		}
	}
	n, err := reuseport.Open(pins)
	return n, true, err
}
