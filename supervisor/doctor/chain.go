package doctor

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/baton-mesh/baton/supervisor/ports"
)

// longChain is how many sockets a port must have for a walk over them to be felt:
// at some 0.05 µs each, 0.05 ms in which the port accepts nothing.
const longChain = 1000

func (o Options) longChain() int { return cmp.Or(o.long, longChain) }

// examineChains looks for ports on which binding a socket is slow, and holds up
// accepting: those with many sockets, unless the kernel knows without looking
// that a new one has no conflict. It knows while every socket of the port has
// SO_REUSEPORT and the one user, and the latest was bound to the same address.
func examineChains(o Options) []Finding {
	if o.Config == nil {
		return nil
	}
	var findings []Finding
	seen := map[uint16]bool{}
	for _, l := range o.Config.Listeners {
		addr := l.AddrPort()
		if seen[addr.Port()] {
			continue
		}
		seen[addr.Port()] = true
		c, err := ports.ChainOf(addr.Port())
		if err != nil {
			return append(findings, Finding{Level: Warn, Found: err.Error(), Advice: "allow sock_diag, to see how many sockets a port has"})
		}
		if c.Sockets < o.longChain() {
			continue
		}
		f := judgeChain(c, o.longChain())
		f.Name = strconv.Itoa(int(addr.Port()))
		if f.Level != OK {
			f.Found += fmt.Sprintf("; a bind to %s takes %v now", addr, ports.BindTime(addr, l.DualStack, 0).Round(100*time.Nanosecond))
		}
		findings = append(findings, f)
	}
	return findings
}

func judgeChain(c ports.Chain, long int) Finding {
	found := fmt.Sprintf("%d sockets, connections included, at most %d on one address; %d listen, on %d addresses", c.Sockets, c.Longest, len(c.Listening), c.Addresses())
	exclusive := c.Exclusive()
	if len(exclusive) > 0 {
		ports.FindProcesses(exclusive)
		who := make([]string, 0, 3)
		for _, h := range exclusive[:min(len(exclusive), cap(who))] {
			who = append(who, owner(h)+" on "+h.Address.String())
		}
		return Finding{Level: Warn,
			Found:  fmt.Sprintf("%s, %d of them without SO_REUSEPORT (%s): a bind to every address of the port walks all of its sockets, with the port locked", found, len(exclusive), strings.Join(who, ", ")),
			Advice: "give those SO_REUSEPORT, or another port; until then a release on this port holds up accepting; before Linux 6.1 each bind walks all"}
	}
	if c.Addresses() > 1 && c.Longest >= long {
		return Finding{Level: Warn,
			Found:  found + ": a bind to one address after one to another walks all sockets of that address, with the port locked",
			Advice: "put the listener with most connections on a port of its own; a release binds a socket for each worker of each listener"}
	}
	return Finding{Level: OK, Found: found}
}

func owner(h ports.Holder) string {
	if len(h.Processes) == 0 {
		return "a process that is not ours to see"
	}
	return fmt.Sprintf("%s (pid %d)", h.Processes[0].Comm, h.Processes[0].PID)
}
