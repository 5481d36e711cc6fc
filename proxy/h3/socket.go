package h3

import (
	"net"

	"golang.org/x/net/ipv4"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/quicid"
)

// watched is a worker's socket that sees whose packets come. quic-go reads in
// batches from what has ReadBatch; all else it does with the socket itself.
type watched struct {
	*net.UDPConn
	batches *ipv4.PacketConn // of IPv6 sockets, too: recvmmsg(2) is the same
	owner   func(id []byte) (quicid.ID, bool)
	own     quicid.ID
	ledger  *ledger.Writer
}

// watch makes a worker's socket count what should not have come to it.
func (s *Server) watch(socket *net.UDPConn, worker int) net.PacketConn {
	if s.opts.Owner == nil || s.opts.Ledger == nil || s.opts.Own.ServerID == 0 {
		return socket
	}
	own := s.opts.Own
	own.Worker = uint8(worker)
	return &watched{socket, ipv4.NewPacketConn(socket), s.opts.Owner, own, s.opts.Ledger}
}

// ReadBatch is as [ipv4.PacketConn.ReadBatch].
func (w *watched) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := w.batches.ReadBatch(ms, flags)
	for i := range max(n, 0) {
		w.look(ms[i].Buffers[0][:ms[i].N])
	}
	return n, err
}

// look counts a packet that names another slot of the node, or another worker of
// this one. A connection ID of ours is at a place that no version of QUIC changes
// (RFC 8999, section 5).
func (w *watched) look(packet []byte) {
	const (
		long      = 0x80 // the form, in the first octet
		lengthAt  = 5    // of the ID, in the long form, behind the version
		shortHead = 1
	)
	var id []byte
	switch {
	case len(packet) >= shortHead+quicid.Len && packet[0]&long == 0:
		id = packet[shortHead:][:quicid.Len]
	case len(packet) > lengthAt+quicid.Len && packet[lengthAt] == quicid.Len:
		id = packet[lengthAt+1:][:quicid.Len]
	default:
		return
	}
	if named, ok := w.owner(id); ok && named.ServerID == w.own.ServerID && named != w.own {
		w.ledger.Stray(named.Slot)
	}
}
