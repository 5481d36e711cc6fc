// Package bpffs says where BPF objects have names: what is pinned there outlives the
// process that made it.
package bpffs

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// root is where the file system belongs.
const root = "/sys/fs/bpf"

// Of is the directory of an instance.
func Of(instance string) string { return filepath.Join(root, "baton", instance) }

// Mounted is [Of], and mounts the file system where there is none. The error is that of
// statfs(2) or mount(2).
func Mounted(instance string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", root, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		if err := unix.Mount("bpf", root, "bpf", 0, ""); err != nil {
			return "", fmt.Errorf("mount the BPF file system on %s: %w", root, err)
		}
	}
	return Of(instance), nil
}
