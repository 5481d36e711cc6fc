package doctor

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
	"github.com/baton-mesh/baton/supervisor/spawn"
)

// examineProxy looks for the binary of a generation and its user.
func examineProxy(o Options) []Finding {
	if o.Config == nil || len(o.Config.Proxy.Command) == 0 {
		return nil
	}
	var findings []Finding
	if b, err := spawn.Open(o.Config.Proxy.Command[0]); err != nil {
		findings = append(findings, Finding{"command", Fail, err.Error(), "install it, or correct proxy.command"})
	} else {
		findings = append(findings, Finding{"command", OK, b.Path, ""})
		b.Close()
	}
	if why := spawn.OnlyOwn(o.Config.Proxy.User); why != nil && o.steering() != config.SteeringBPF {
		findings = append(findings, Finding{"user", OK, fmt.Sprintf("uid %d, this one: %v", spawn.Own().UID, why), ""})
	} else if a, err := spawn.LookUpAccount(o.Config.Proxy.User); err != nil {
		findings = append(findings, Finding{"user", Fail, err.Error(), "create the user, or correct proxy.user"})
	} else {
		findings = append(findings, Finding{"user", OK, fmt.Sprintf("%s, uid %d, gid %d", o.Config.Proxy.User, a.UID, a.GID), ""})
	}
	return findings
}

// examineListeners finds out whether each address can be had, and if not, who has it.
func examineListeners(o Options) []Finding {
	if o.Config == nil {
		return nil
	}
	supervisor := supervisorOf(o.Config.Admin.Socket)
	all, err := ports.Unknown(func(uint64) bool { return false })
	if err == nil {
		err = ports.FindProcesses(all)
	}
	if err != nil {
		return []Finding{{Level: Warn, Found: err.Error(), Advice: "allow sock_diag, to see who holds a port"}}
	}
	var findings []Finding
	for _, l := range o.Config.Listeners {
		if !l.Protocol.HasStreams() {
			continue
		}
		f := examineListener(l, all, supervisor)
		f.Name = l.Name
		findings = append(findings, f)
	}
	return findings
}

// examineListener looks for the listener's address among all sockets that listen.
func examineListener(l config.Listener, all []ports.Holder, supervisor int) Finding {
	addr := l.AddrPort()
	holders := ports.Overlapping(all, addr, l.DualStack)
	foreign := slices.DeleteFunc(slices.Clone(holders), func(h ports.Holder) bool {
		return slices.ContainsFunc(h.Processes, func(p ports.Process) bool { return p.PID == supervisor })
	})
	if len(foreign) > 0 {
		return Finding{Level: Fail, Found: fmt.Sprintf("%s: %s", addr, describe(foreign[0])), Advice: "stop that process, or choose another address"}
	}
	if len(holders) > 0 {
		return Finding{Level: OK, Found: fmt.Sprintf("%s: held by the baton that runs, pid %d", addr, supervisor)}
	}

	err := ports.Free(addr, l.DualStack)
	switch {
	case err == nil:
		return Finding{Level: OK, Found: addr.String() + " is free"}
	case errors.Is(err, unix.EADDRINUSE):
		return Finding{Level: Fail, Found: err.Error(), Advice: "nobody listens: an outgoing connection or a socket that is only bound has the port; see ss -tanp"}
	}
	return notBound(err)
}

// notBound says why an address cannot be had that nobody has.
func notBound(err error) Finding {
	f := Finding{Level: Fail, Found: err.Error()}
	switch {
	case errors.Is(err, unix.EACCES):
		f.Advice = "grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		f.Advice = "give the address to an interface of this host first, or correct it"
	}
	return f
}

// processesOf names who has a socket.
func processesOf(h ports.Holder) string {
	if len(h.Processes) == 0 {
		return "a process that is not ours to see"
	}
	names := make([]string, len(h.Processes))
	for i, p := range h.Processes {
		names[i] = fmt.Sprintf("%s (pid %d)", p.Comm, p.PID)
	}
	return strings.Join(names, ", ")
}

// describe says who a holder is and whether the kernel would let Baton join it.
func describe(h ports.Holder) string {
	how := "without SO_REUSEPORT"
	switch shares, err := h.Shares(); {
	case err != nil:
		how = "SO_REUSEPORT unknown"
	case shares:
		// Worse than a plain conflict: nothing would fail, and half the
		// connections would go to the other program.
		how = "with SO_REUSEPORT: its sockets and ours would share the connections"
	}
	return fmt.Sprintf("%s listens on %s as uid %d, %s", processesOf(h), h.Address, h.UID, how)
}

// supervisorOf is the pid of the baton that listens on an admin socket, or 0.
func supervisorOf(socket string) int {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var peer *unix.Ucred
	raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || peer == nil {
		return 0
	}
	return int(peer.Pid)
}
