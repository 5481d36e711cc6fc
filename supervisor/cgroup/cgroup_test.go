package cgroup

import (
	"errors"
	"testing"
)

func TestOwn(t *testing.T) {
	for _, test := range []struct{ name, mountinfo, cgroup, want string }{
		{"alone", "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate", "0::/system.slice/baton.service", "/sys/fs/cgroup/system.slice/baton.service"},
		{"beside version 1", "29 24 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw", "4:memory:/x\n0::/a", "/sys/fs/cgroup/unified/a"},
		{"part of it, in a container", "30 24 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/docker/1/a", "/sys/fs/cgroup/a"},
		{"root", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/", "/sys/fs/cgroup"},
	} {
		if got, err := Own(test.mountinfo, test.cgroup); got != test.want || err != nil {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	if _, err := Own("29 24 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "0::/"); !errors.Is(err, ErrNone) {
		t.Errorf("version 1 alone: %v, want ErrNone", err)
	}
}
