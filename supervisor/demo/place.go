package demo

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
)

// Place is where a [Node] runs: a network namespace with an address and a
// loopback interface. The zero value is this process's own, on 127.0.0.1.
type Place struct {
	// Addr is the address of the listeners.
	Addr netip.Addr
	// Command is [exec.Command] for a process that runs there. The process is
	// the program itself, not one that has it as a child.
	Command func(name string, args ...string) *exec.Cmd
	// Listen listens there on TCP, for the origin.
	Listen func(address string) (net.Listener, error)
}

func (p Place) orLoopback() Place {
	if !p.Addr.IsValid() {
		p.Addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if p.Command == nil {
		p.Command = exec.Command
	}
	if p.Listen == nil {
		p.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	return p
}

// Ports are sought below those that the kernel gives to clients
// (net.ipv4.ip_local_port_range, from 32768 on), which it takes for TCP and for UDP
// apart: one that is free for a listener now, a client's datagrams may have a
// moment later.
const lowestPort, highestPort = 10000, 32767

// freePorts finds ports of the address that nobody has. They are all held until
// the last is found, so that none comes twice.
func (p Place) freePorts(n int) ([]netip.AddrPort, error) {
	var free []netip.AddrPort
	for failed := 0; len(free) < n; {
		port := lowestPort + rand.N(highestPort-lowestPort+1)
		l, err := p.Listen(netip.AddrPortFrom(p.Addr, uint16(port)).String())
		if err != nil {
			if failed++; failed > 100 {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
			continue
		}
		defer l.Close()
		free = append(free, addrPort(l.Addr()))
	}
	return free, nil
}
