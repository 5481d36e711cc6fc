package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/proxy/ledger"
)

type flowID struct {
	worker *worker
	client netip.AddrPort
}

// flow is one client's datagrams and their answers.
type flow struct {
	server   *Server
	id       flowID
	upstream *net.UDPConn
	release  func()
	info     []byte       // control message that makes answers leave from the right address
	last     atomic.Int64 // when something moved, in nanoseconds since started
	asked    atomic.Bool  // it was the client's, and nothing came back since
	closed   sync.Once
	begun    time.Time
	account  ledger.Flow
	call     ledger.Call // the flow as the one stream that it is
}

var started = time.Now()

func (f *flow) heard() { f.last.Store(int64(time.Since(started))) }

func (f *flow) silent() time.Duration {
	return time.Since(started) - time.Duration(f.last.Load())
}

// ask notes that the client has sent something. Of a flow that is known Server.mu is held.
func (f *flow) ask() {
	f.asked.Store(true)
	f.heard()
}

// over reports whether the flow has been silent for the listener's idle_timeout. One
// whose client may wait for an answer, of an upstream that is slow or a machine that
// has no time for either of us, gets what answerWait says.
func (f *flow) over(timeout time.Duration) bool {
	if timeout > 0 && f.asked.Load() {
		timeout = max(timeout, answerWait)
	}
	return timeout > 0 && f.silent() >= timeout+clockSlack
}

// expire forgets the flow if it is over. That it is decides the lock: a worker that has
// found it has a datagram for it.
func (f *flow) expire(timeout time.Duration) {
	s := f.server
	s.mu.Lock()
	over := f.over(timeout)
	if over {
		delete(s.flows, f.id)
	}
	s.mu.Unlock()
	if over {
		f.close(false)
	}
}

// answer brings what the upstream sends to the client until the flow is closed.
func (f *flow) answer() {
	b := make([]byte, maxDatagram)
	for {
		n, err := f.upstream.Read(b)
		if err != nil {
			if f.gone() {
				return
			}
			continue // an ICMP error: the upstream was not there, and may be again
		}
		f.heard()
		f.asked.Store(false)
		f.id.worker.socket.WriteMsgUDPAddrPort(b[:n], f.info, f.id.client)
	}
}

// gone reports whether the server has forgotten the flow.
func (f *flow) gone() bool {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	return f.server.flows[f.id] != f
}

// enter begins the flow's account.
func (f *flow) enter() {
	s := f.server
	s.account.Ledger.Accept(&f.account, s.number, f.begun)
	f.call = f.account.Begin(f.begun)
}

// leave ends it. Of the record how it ended is wanted.
func (f *flow) leave(how ledger.Record) {
	how.Route, how.Protocol, how.Client = f.server.account.Route, ledger.UDP, f.id.client.String()
	if f.upstream != nil {
		how.Upstream = f.upstream.RemoteAddr().String()
	}
	f.call.End(&how, time.Since(f.begun))
	f.account.Close(false)
}

// close forgets the flow, which has fallen silent, or is cut in the middle of something.
func (f *flow) close(cut bool) {
	f.closed.Do(func() {
		s := f.server
		s.mu.Lock()
		if s.flows[f.id] == f {
			delete(s.flows, f.id)
		}
		s.mu.Unlock()
		how := ledger.Record{Key: ledger.Key{Class: ledger.Ended}}
		if cut {
			how.Flags |= ledger.Anomalous
		}
		f.leave(how)
		f.upstream.Close()
		f.release()
	})
}

// answerInfo makes of the control message that came with a datagram the one to
// answer it with: from the address it was sent to, by whatever interface leads to
// the client.
func answerInfo(received []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(received)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var info unix.Inet4Pktinfo // ifindex, spec_dst, addr: 4 octets each
			copy(info.Spec_dst[:], m.Data[4:8])
			return unix.PktInfo4(&info)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var info unix.Inet6Pktinfo // addr, ifindex
			copy(info.Addr[:], m.Data[:16])
			if a := netip.AddrFrom16(info.Addr); a.Is6() && a.IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20]) // means nothing elsewhere
			}
			return unix.PktInfo6(&info)
		}
	}
	return nil
}
