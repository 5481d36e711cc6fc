package doctor

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrNotTried is what could not be tried and may work nevertheless.
var ErrNotTried = errors.New("not tried")

// examineBalancer tries the balancer's program, and looks for its interfaces, where the
// configuration has a balancer.
func examineBalancer(o Options) []Finding {
	if o.Config == nil || o.Config.Balancer == nil {
		return nil
	}
	var findings []Finding
	if o.Balancer != nil {
		f := Finding{Level: OK, Found: "the XDP program loads"}
		if err := o.Balancer(); err != nil {
			f.Level, f.Found = Fail, err.Error()
			f.Advice = "use Linux 5.19 or later with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT and CONFIG_INET"
			switch {
			case errors.Is(err, ErrNotTried):
				f.Level, f.Advice = Warn, "mount -t bpf bpf /sys/fs/bpf; `baton balance` does so itself"
			case errors.Is(err, unix.EPERM):
				f.Advice = "grant the capabilities above, CAP_NET_ADMIN and CAP_NET_RAW too; mount the BPF file system on /sys/fs/bpf; in a container also allow bpf(2) in the seccomp profile"
			}
		}
		findings = append(findings, f)
	}
	for _, name := range o.Config.Balancer.Interfaces {
		f := Finding{Name: name, Level: OK, Found: "there"}
		if link, err := net.InterfaceByName(name); err != nil {
			f.Level, f.Found, f.Advice = Warn, "there is no interface of the name", "none needed if it comes later: it is waited for"
		} else if link.Flags&net.FlagUp == 0 {
			f.Level, f.Found, f.Advice = Warn, "is down", fmt.Sprintf("ip link set %s up", name)
		}
		findings = append(findings, f)
	}
	return findings
}
