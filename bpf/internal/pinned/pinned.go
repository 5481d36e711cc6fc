// Package pinned loads and attaches what outlives the process that made it, below a
// directory of a BPF file system. Where there is none, everything ends with the process.
package pinned

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Maps has the named maps of a collection pinned below dir/layout, or taken over from
// there. It returns that directory, which it makes, and what to load the collection with;
// without dir neither.
func Maps(dir, layout string, spec *ebpf.CollectionSpec, names ...string) (at string, o ebpf.CollectionOptions, err error) {
	if dir == "" {
		return "", o, nil
	}
	at = filepath.Join(dir, layout)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return "", o, fmt.Errorf("make the pin directory: %w", err)
	}
	o.Maps.PinPath = at
	for _, name := range names {
		spec.Maps[name].Pinning = ebpf.PinByName
	}
	return at, o, nil
}

// Cgroup is where the link to a cgroup, given as its directory, is pinned. A link on
// another cgroup has another place.
func Cgroup(at, cgroup string) (string, error) {
	info, err := os.Stat(cgroup)
	if err != nil {
		return "", err
	}
	return filepath.Join(at, "cgroup-"+strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10)), nil
}

// Attach takes over the link that an earlier process has pinned for the same cgroup, or
// makes one, beside any that others have attached there. A second link of ours beside it
// would run the program twice until the kernel has freed the first, some time after its
// pin is gone. One on another cgroup stays: the sockets made there are seen from there
// alone. Without at nothing is pinned.
func Attach(at, cgroup string, hook ebpf.AttachType, program *ebpf.Program) (link.Link, error) {
	var pin string
	if at != "" {
		var err error
		if pin, err = Cgroup(at, cgroup); err != nil {
			return nil, err
		}
		if l, err := link.LoadPinnedLink(pin, nil); err == nil {
			if err = l.Update(program); err == nil {
				return l, nil
			}
			l.Close() // of a cgroup that is gone, and another has its inode
		}
		if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: hook, Program: program})
	if err != nil || pin == "" {
		return l, err
	}
	if err := l.Pin(pin); err != nil {
		l.Close()
		return nil, fmt.Errorf("pin: %w", err)
	}
	return l, nil
}
