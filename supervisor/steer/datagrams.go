package steer

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/reuseport"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/idkeys"
)

// datagrams is what listeners of UDP need beside those of TCP: the program that
// reads connection IDs, with the keys of the encrypted ones.
//
// They differ from those of TCP in what a socket means. A generation's UDP socket
// carries its flows, not only new ones: it stays in its slot until the process
// has ended, and nobody holds a copy, in whose queue datagrams would wait for ever.
// And the sink takes nothing: a datagram that is nobody's is lost, silently
// (docs/decisions/013).
type datagrams struct {
	node     *reuseport.Node
	serverID uint32
	at       func(l config.Listener, udp bool) *listener
	ids      *idkeys.Keys

	mu     sync.Mutex
	loaded bool
}

// socketBuffer is what a UDP socket may queue, in octets: a burst of QUIC at a
// gigabit for some 50 ms. A generation may not set it above net.core.rmem_max.
const socketBuffer = 7 << 20

// load loads the program, once.
func (d *datagrams) load() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.loaded {
		return nil
	}
	keys, err := d.node.Keys()
	if err != nil {
		return err
	}
	// First the keys, then the program that reads by them.
	if err := d.ids.ReadBy(keys); err != nil {
		return err
	}
	if err := d.node.Datagrams(d.serverID); err != nil {
		return err
	}
	d.loaded = true
	return nil
}

// bindUDP makes a UDP socket at the listener's address that may share it with
// other sockets of this user.
func bindUDP(l config.Listener, nonblocking bool) (Socket, error) {
	s, err := bindAs(l, nonblocking, unix.SOCK_DGRAM, unix.IPPROTO_UDP)
	if err != nil {
		return Socket{}, err
	}
	for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(s.FD, unix.SOL_SOCKET, option, socketBuffer); err != nil && !errors.Is(err, unix.EPERM) {
			s.close()
			return Socket{}, fmt.Errorf("listener %s: size its buffers: %w", l.Name, err)
		}
	}
	return s, nil
}

// sameNumber refuses a generation whose connection IDs would be another node's. A
// supervisor that was restarted with another number has the one of the generations
// that it found as long as it runs: their connections have IDs with that.
func (d *datagrams) sameNumber(c *config.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.loaded || c.Node.ServerID == d.serverID {
		return nil
	}
	return fmt.Errorf("node.server_id is %d, and that of the connections which were found is %d: let all generations end, then start anew", c.Node.ServerID, d.serverID)
}

// bind makes the UDP sockets of a generation, by listener, one a worker.
func (d *datagrams) bind(c *config.Config) (all Sockets, err error) {
	all = Sockets{}
	defer func() {
		if err != nil {
			all.Close()
		}
	}()
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
func (d *datagrams) fill(slot uint8, c *config.Config, sockets Sockets) error {
	for _, l := range c.Listeners {
		var fds []int
		for _, s := range sockets[l.Name] {
			fds = append(fds, s.FD)
		}
		if len(fds) == 0 {
			continue
		}
		at := d.at(l, true)
		if at == nil {
			return fmt.Errorf("there is no listener %s any more", nameOf(l, true))
		}
		if err := at.group.Fill(slot, choiceOf(l), fds); err != nil {
			return err
		}
	}
	return nil
}

// dead says that the slot's process has ended: what is still sent to it goes to
// the current generation, which tells the client.
func (d *datagrams) dead(slot uint8) { d.node.EmptyDatagrams(slot) }

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
