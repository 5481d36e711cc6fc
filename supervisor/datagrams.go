package supervisor

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
)

// datagrams are the groups of UDP sockets of a node.
//
// They differ from those of TCP in what a socket means. A generation's UDP socket
// carries its flows, not only new ones: it stays in its slot until the process
// has ended, and nobody holds a copy, in whose queue datagrams would wait for ever.
// And the sink takes nothing: a datagram that is nobody's is lost, silently
// (docs/decisions/013).
type datagrams struct {
	node   *reuseport.Node
	attach bool

	mu       sync.Mutex
	serverID uint32 // in whose connection IDs the program finds slots; 0 before there is one
	keys     *cidkeys.Table
	groups   map[string]*datagramGroup // by listener
}

type datagramGroup struct {
	conf  config.Listener
	group *reuseport.Group
	sink  socket
}

// socketBuffer is what a UDP socket may queue, in octets: a burst of QUIC at a
// gigabit for some 50 ms. A generation may not set it above net.core.rmem_max.
const socketBuffer = 7 << 20

// ensure makes the group of a listener, if it is not there, with the program on
// it before any generation joins.
func (d *datagrams) ensure(l config.Listener, serverID uint32) (*datagramGroup, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.groups[l.Name]; g != nil {
		return g, nil
	}
	if d.keys == nil {
		keys, err := cidkeys.New()
		if err != nil {
			return nil, err
		}
		if err := d.node.Datagrams(serverID, keys); err != nil {
			keys.Close()
			return nil, err
		}
		d.serverID, d.keys, d.groups = serverID, keys, map[string]*datagramGroup{}
	}
	address := reuseport.Address{AddrPort: l.AddrPort(), DualStack: l.DualStack, UDP: true}
	if l.Protocol == config.UDP {
		address.Forget = l.IdleTimeout
	}
	number, err := d.number(address)
	if err != nil {
		return nil, err
	}
	group, err := d.node.Group(number, address)
	if err != nil {
		return nil, err
	}
	g := &datagramGroup{conf: l, group: group, sink: socket{fd: -1}}
	if d.attach {
		if g.sink, err = silentSink(l, group); err != nil {
			return nil, err
		}
	}
	d.groups[l.Name] = g
	return g, nil
}

// number is what the address had under an earlier supervisor, or else the highest
// that is free: those of TCP are counted from below.
func (d *datagrams) number(address reuseport.Address) (uint32, error) {
	if had, err := d.node.Number(address); had != 0 || err != nil {
		return had, err
	}
	taken, err := d.node.Numbers()
	if err != nil {
		return 0, err
	}
	number := uint32(reuseport.MaxListeners)
	for taken[number] {
		number--
	}
	return number, nil
}

// numberOf is a listener's number, where it takes datagrams.
func (d *datagrams) numberOf(name string) (uint32, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.groups[name]
	if g == nil {
		return 0, false
	}
	return g.group.Number(), true
}

// each calls f with each listener's name and number.
func (d *datagrams) each(f func(name string, number uint32)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, g := range d.groups {
		f(name, g.group.Number())
	}
}

// silentSink makes a socket that no datagram enters and that answers none.
func silentSink(l config.Listener, group *reuseport.Group) (_ socket, err error) {
	s, err := bindUDP(l, true)
	if err != nil {
		return socket{}, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// One instruction of classic BPF: keep 0 octets, that is none. The kernel then
	// drops a datagram as if its checksum were wrong.
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]}); err != nil {
		return socket{}, fmt.Errorf("sink of listener %s: attach a filter: %w", l.Name, err)
	}
	if err := group.Attach(s.fd); err != nil {
		return socket{}, err
	}
	if err := group.SetSink(s.fd); err != nil {
		return socket{}, err
	}
	return s, nil
}

// bindUDP makes a UDP socket at the listener's address that may share it with
// other sockets of this user.
func bindUDP(l config.Listener, nonblocking bool) (socket, error) {
	s, err := bindAs(l, nonblocking, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return socket{}, err
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, option, socketBuffer); err != nil && !errors.Is(err, unix.EPERM) {
			s.close()
			return socket{}, fmt.Errorf("listener %s: size its buffers: %w", l.Name, err)
		}
	}
	return s, nil
}

// ensureAll makes the groups of all listeners that take datagrams.
func (d *datagrams) ensureAll(c *config.Config) error {
	for _, l := range c.Listeners {
		if !l.HasDatagrams() {
			continue
		}
		if _, err := d.ensure(l, c.Node.ServerID); err != nil {
			return fmt.Errorf("datagrams of listener %s: %w", l.Name, err)
		}
	}
	return nil
}

// sameNumber refuses a generation whose connection IDs would be another node's. A
// supervisor that was restarted with another number has the one of the generations
// that it found as long as it runs: their connections have IDs with that.
func (d *datagrams) sameNumber(c *config.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.serverID == 0 || c.Node.ServerID == d.serverID {
		return nil
	}
	return fmt.Errorf("node.server_id is %d, and that of the connections which were found is %d: let all generations end, then start anew", c.Node.ServerID, d.serverID)
}

// bind makes the UDP sockets of a generation, by listener, one a worker.
func (d *datagrams) bind(c *config.Config) (all map[string][]socket, err error) {
	all = map[string][]socket{}
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	if err := d.ensureAll(c); err != nil {
		return nil, err
	}
	if err := d.sameNumber(c); err != nil {
		return nil, err
	}
	for _, l := range c.Listeners {
		if !l.HasDatagrams() {
			continue
		}
		for range l.Workers {
			s, err := bindUDP(l, c.Proxy.Nonblocking)
			if err != nil {
				return nil, err
			}
			all[l.Name] = append(all[l.Name], s)
		}
	}
	return all, nil
}

// fill arms a slot: after it a probe or a shift may name it.
func (d *datagrams) fill(slot uint8, c *config.Config, sockets map[string][]socket) error {
	for _, l := range c.Listeners {
		var fds []int
		for _, s := range sockets[l.Name] {
			fds = append(fds, s.fd)
		}
		if len(fds) == 0 {
			continue
		}
		d.mu.Lock()
		g := d.groups[l.Name]
		d.mu.Unlock()
		if err := g.group.Fill(slot, choiceOf(l), fds); err != nil {
			return err
		}
	}
	return nil
}

// dead says that the slot's process has ended: what is still sent to it goes to
// the current generation, which tells the client.
func (d *datagrams) dead(slot uint8) { d.node.EmptyDatagrams(slot) }

func (d *datagrams) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.groups {
		if g.sink.fd >= 0 {
			g.sink.close()
		}
	}
	if d.keys == nil {
		return nil
	}
	return d.keys.Close()
}

func choiceOf(l config.Listener) reuseport.Choice {
	if l.WorkerChoice == config.ByCPU {
		return reuseport.ByCPU
	}
	return reuseport.ByHash
}

// withoutDatagrams says that a mode of steering has no place for a listener.
func withoutDatagrams(c *config.Config, mode config.Steering) error {
	for _, l := range c.Listeners {
		if l.HasDatagrams() {
			return fmt.Errorf("listener %s takes datagrams, whose flows steering by %s cannot keep together: leave http3 and udp out", l.Name, mode)
		}
	}
	return nil
}
