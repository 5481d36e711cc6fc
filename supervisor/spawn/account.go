package spawn

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Account is the user and group a generation runs as.
type Account struct{ UID, GID int }

// Own is the account of this process.
func Own() Account { return Account{os.Geteuid(), os.Getegid()} }

// LookUpAccount finds an account by name or by number.
func LookUpAccount(name string) (Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return Account{}, fmt.Errorf("user %q is unknown to this host", name)
		}
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return Account{}, err
	}
	if self := os.Geteuid(); self != 0 && uid != self {
		return Account{}, fmt.Errorf("user %q: only root can run a generation as another user; set proxy.user to %d or run baton as root", name, self)
	}
	return Account{uid, gid}, nil
}

// toSupervise is what it takes to start a process of another user, and to tell it to
// stop.
var toSupervise = []struct {
	number uint // below 32
	name   string
}{{unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SETGID, "CAP_SETGID"}, {unix.CAP_KILL, "CAP_KILL"}}

// OnlyOwn says why this process can supervise servers of its own account alone, and
// none of the user's; nil: it can.
func OnlyOwn(name string) error {
	if self := os.Geteuid(); self != 0 {
		return fmt.Errorf("uid %d is not root", self)
	}
	a, err := LookUpAccount(name)
	if err != nil || a == Own() {
		return nil // nothing to become
	}
	held := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &held[0]); err != nil {
		return err
	}
	for _, c := range toSupervise {
		if held[0].Effective&(1<<c.number) == 0 {
			return fmt.Errorf("this process lacks %s", c.name)
		}
	}
	if err := mapped("/proc/self/uid_map", a.UID); err != nil {
		return err
	}
	return mapped("/proc/self/gid_map", a.GID)
}

// mapped says why a user or group is none of this user namespace (user_namespaces(7)).
func mapped(file string, id int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		var first, outside, length int
		if _, err := fmt.Sscan(line, &first, &outside, &length); err == nil && id >= first && id-first < length {
			return nil
		}
	}
	return fmt.Errorf("%d is not in %s of this user namespace", id, file)
}
