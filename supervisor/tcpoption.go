package supervisor

import (
	"errors"

	"github.com/baton-mesh/baton/bpf/sockops"
	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor/cgroup"
	"github.com/baton-mesh/baton/supervisor/steer"
)

// openTCPOption loads what carries the node's number in TCP headers, where the
// configuration asks for it. Without it nothing is lost but the option, and that
// is said.
func (s *Supervisor) openTCPOption(pins string) {
	want := s.config.Node.TCPOption
	if !want.Tell && !want.Echo {
		// Listeners of generations that an earlier supervisor has left may tell it still.
		if err := sockops.Unpin(pins); err != nil {
			s.log.Error("an earlier supervisor's TCP option stays", "error", err)
		}
		return
	}
	p, err := sockops.Open(sockops.Options{ServerID: s.config.Node.ServerID, HostOrder: want.ByteOrder == config.HostOrder, Dir: pins})
	if err == nil && want.Tell {
		var own string
		if own, err = cgroup.Find(); err == nil {
			err = p.Serve(own)
		}
		if err != nil {
			err = errors.Join(err, p.Unpin(), p.Close())
		}
	}
	if err != nil {
		s.log.Error("no TCP option with the node's number: balancers find its connections by other means", "error", err)
		return
	}
	s.option = p
	if want.Echo && s.cgroups == nil {
		s.log.Error("no TCP option on connections to upstreams: generations have no cgroups")
	}
}

// tell makes a listening socket write the node's number into its SYN-ACKs. A sink
// does too: what it answers is served by a generation.
func (s *Supervisor) tell(sock steer.Socket) {
	if s.option == nil || !s.config.Node.TCPOption.Tell {
		return
	}
	if err := s.option.Tell(sock.FD); err != nil {
		s.log.Error("a listening socket does not tell the node's number", "error", err)
	}
}

// echo makes what a generation dials carry the number of a node that tells it. It
// ends with the generation's cgroup and its last connection.
func (s *Supervisor) echo(g *generation) {
	if s.option == nil || g.cgroup == nil || !s.config.Node.TCPOption.Echo {
		return
	}
	if err := s.option.Echo(g.cgroup.Dir); err != nil {
		s.log.Error("connections to upstreams carry no number of a node", "generation", g.id, "error", err)
	}
}

func (s *Supervisor) closeTCPOption() {
	if s.option != nil {
		s.option.Unpin()
		s.option.Close()
	}
}

// tcpOptionStatus reads what was counted; events that never were are left out.
func (s *Supervisor) tcpOptionStatus() map[string]uint64 {
	if s.option == nil {
		return nil
	}
	counts, err := s.option.Counts()
	if err != nil {
		return nil
	}
	all := map[string]uint64{}
	for e, n := range counts {
		if n > 0 {
			all[sockops.Event(e).String()] = n
		}
	}
	return all
}
