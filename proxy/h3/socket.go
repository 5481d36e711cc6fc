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
	ids     *IDs
	ledger  *ledger.Writer
}

// watch makes a worker's socket count what should not have come to it.
func (s *Server) watch(socket *net.UDPConn, ids *IDs) net.PacketConn {
	if s.opts.Ledger == nil || ids.Owner.ServerID == 0 {
		return socket
	}
	return &watched{socket, ipv4.NewPacketConn(socket), ids, s.opts.Ledger}
}

// ReadBatch is as [ipv4.PacketConn.ReadBatch].
func (w *watched) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := w.batches.ReadBatch(ms, flags)
	if n > 0 {
		by := w.ids.reader()
		for i := range n {
			w.look(by, ms[i].Buffers[0][:ms[i].N])
		}
	}
	return n, err
}

// look counts a packet that names another slot of the node, or another worker of
// this one. A connection ID of ours is at a place that no version of QUIC changes
// (RFC 8999, section 5).
func (w *watched) look(by *quicid.Keys, packet []byte) {
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
	if named, _, ok := by.Decode(id); ok && named.ServerID == w.ids.Owner.ServerID && named != w.ids.Owner {
		w.ledger.Stray(named.Slot)
	}
}
