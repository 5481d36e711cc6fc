package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/ports"
)

// enoughBuffer is what a socket that takes datagrams is given, in octets: a burst of
// QUIC at a gigabit for some 50 ms.
const enoughBuffer = 7 << 20

// examineDatagrams looks at what listeners of UDP and HTTP/3 need. It is silent where
// there are none.
func examineDatagrams(o Options) []Finding {
	if o.Config == nil || !slices.ContainsFunc(o.Config.Listeners, config.Listener.HasDatagrams) {
		return nil
	}
	findings := append(examineBuffers(o), examineGSO())
	all, err := ports.Datagrams()
	if err == nil {
		err = ports.FindProcesses(all)
	}
	if err != nil {
		return append(findings, Finding{Level: Warn, Found: err.Error(), Advice: "allow sock_diag for UDP (CONFIG_INET_UDP_DIAG), to see who holds a port"})
	}
	supervisor := supervisorOf(o.Config.Admin.Socket)
	for _, l := range o.Config.Listeners {
		if l.HasDatagrams() {
			f := examineUDP(l, all, supervisor)
			f.Name = l.Name
			findings = append(findings, f)
		}
	}
	return findings
}

// examineBuffers asks whether sockets may have the buffers that they are to have: who
// has CAP_NET_ADMIN goes beyond the limits.
func examineBuffers(o Options) (findings []Finding) {
	status, _ := o.text("/proc/self/status")
	held, _ := effective(status)
	for _, name := range []string{"rmem_max", "wmem_max"} {
		text, err := o.text("/proc/sys/net/core/" + name)
		f := Finding{Name: "net.core." + name, Level: OK, Found: text}
		limit, _ := strconv.Atoi(text)
		switch {
		case err != nil:
			f.Level, f.Found = Warn, err.Error()
		case limit < enoughBuffer && held&(1<<unix.CAP_NET_ADMIN) != 0:
			f.Found += "; CAP_NET_ADMIN goes beyond it"
		case limit < enoughBuffer:
			f.Level, f.Advice = Warn, fmt.Sprintf("set it to %d, or grant CAP_NET_ADMIN: a burst of QUIC runs over a smaller buffer, and is lost", enoughBuffer)
		}
		findings = append(findings, f)
	}
	return findings
}

// examineGSO tries whether the kernel cuts a train of datagrams itself (udp(7)): with
// one call for many QUIC sends about twice as much.
func examineGSO() Finding {
	f := Finding{Name: "GSO", Level: OK, Found: "UDP_SEGMENT is there"}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
	}
	if err != nil {
		f.Level, f.Found, f.Advice = Warn, fmt.Sprintf("UDP_SEGMENT: %v", err), "use Linux 4.18 or later: without it every packet of HTTP/3 is a call of its own"
	}
	return f
}

// examineUDP looks for the listener's address among all sockets of UDP. Those of the
// baton that runs are its generations': at the very address of its sink, and its user's.
func examineUDP(l config.Listener, all []ports.Holder, supervisor int) Finding {
	addr := l.AddrPort()
	holders := ports.Overlapping(all, addr, l.DualStack)
	own := slices.IndexFunc(holders, func(h ports.Holder) bool {
		return slices.ContainsFunc(h.Processes, func(p ports.Process) bool { return p.PID == supervisor })
	})
	for _, h := range holders {
		if own >= 0 && h.Address == holders[own].Address && h.UID == holders[own].UID {
			continue
		}
		return Finding{Level: Fail, Found: fmt.Sprintf("%s: %s takes datagrams on %s as uid %d", addr, processesOf(h), h.Address, h.UID), Advice: "stop that process, or choose another address"}
	}
	if own >= 0 {
		return Finding{Level: OK, Found: fmt.Sprintf("%s: held by the baton that runs, pid %d", addr, supervisor)}
	}
	err := ports.FreeUDP(addr, l.DualStack)
	switch {
	case err == nil:
		return Finding{Level: OK, Found: addr.String() + " is free"}
	case errors.Is(err, unix.EADDRINUSE):
		return Finding{Level: Fail, Found: err.Error(), Advice: "a connected socket has the port; see ss -uanp"}
	}
	return notBound(err)
}
