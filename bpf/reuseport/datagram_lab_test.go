package reuseport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/bpf/cidkeys"
	"github.com/baton-mesh/baton/quicid"
)

const (
	nodeID       = 42
	workersOfLab = 2
)

// datagramLab is one group of UDP sockets: a sink, and workers in slots.
type datagramLab struct {
	t       *testing.T
	node    *Node
	group   *Group
	keys    *cidkeys.Table
	sink    *net.UDPConn
	address netip.AddrPort
	sockets map[uint8][]*net.UDPConn
}

// newDatagramLab makes a group of QUIC, or with a time to forget of plain UDP.
func newDatagramLab(t *testing.T, forget time.Duration, slots ...uint8) *datagramLab {
	t.Helper()
	return newDatagramLabIn(t, "", forget, slots...)
}

// newDatagramLabIn is newDatagramLab with everything pinned in a directory.
func newDatagramLabIn(t *testing.T, dir string, forget time.Duration, slots ...uint8) *datagramLab {
	t.Helper()
	l := &datagramLab{t: t, sockets: map[uint8][]*net.UDPConn{}}
	var err error
	if l.node, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.node.Close() })
	if l.keys, err = l.node.Keys(); err != nil {
		t.Fatal(err)
	}
	if err := l.node.Datagrams(nodeID); err != nil {
		t.Fatal(err)
	}
	l.sink = l.bind("127.0.0.1:0")
	l.address = l.sink.LocalAddr().(*net.UDPAddr).AddrPort()
	if l.group, err = l.node.Group(1, Address{AddrPort: l.address, UDP: true, Forget: forget}); err != nil {
		t.Fatal(err)
	}
	control(t, l.sink, func(fd int) error { return l.group.Attach(fd) })
	control(t, l.sink, func(fd int) error { return l.group.SetSink(fd) })
	for _, slot := range slots {
		l.fill(slot)
	}
	if len(slots) > 0 {
		l.shift(slots[0])
	}
	return l
}

func (l *datagramLab) bind(address string) *net.UDPConn {
	l.t.Helper()
	lc := net.ListenConfig{Control: reusePort}
	c, err := lc.ListenPacket(l.t.Context(), "udp4", address)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}

func (l *datagramLab) fill(slot uint8) {
	l.t.Helper()
	var fds []int
	for range workersOfLab {
		c := l.bind(l.address.String())
		l.sockets[slot] = append(l.sockets[slot], c)
		control(l.t, c, func(fd int) error { fds = append(fds, fd); return nil })
	}
	if err := l.group.Fill(slot, ByHash, fds); err != nil {
		l.t.Fatal(err)
	}
}

func (l *datagramLab) shift(slot uint8) {
	l.node.SetShift(All, Shift{Current: slot, Other: slot, Salt: 7})
}

func (l *datagramLab) kill(slot uint8) {
	for _, c := range l.sockets[slot] {
		c.Close()
	}
}

// place is where a datagram has arrived.
type place struct {
	slot   int // NoSlot: the sink
	worker int
}

var inSink = place{NoSlot, 0}

// send sends a datagram and finds it, wherever it is.
func (l *datagramLab) send(from net.Conn, datagram []byte) place {
	l.t.Helper()
	if _, err := from.Write(datagram); err != nil {
		l.t.Fatalf("send: %v", err)
	}
	// On loopback it is in its queue when the write returns.
	b := make([]byte, 4096)
	look := func(c *net.UDPConn) bool {
		c.SetReadDeadline(time.Now().Add(-time.Second))
		found := false
		control(l.t, c, func(fd int) error {
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			found = err == nil && bytes.Equal(b[:n], datagram)
			return nil
		})
		return found
	}
	for slot, workers := range l.sockets {
		for w, c := range workers {
			if isOpen(c) && look(c) {
				return place{int(slot), w}
			}
		}
	}
	if look(l.sink) {
		return inSink
	}
	l.t.Fatalf("%x arrived nowhere", datagram)
	return place{}
}

func isOpen(c *net.UDPConn) bool {
	_, err := c.SyscallConn()
	if err != nil {
		return false
	}
	return !errors.Is(c.SetReadDeadline(time.Time{}), net.ErrClosed)
}

func (l *datagramLab) client() net.Conn {
	l.t.Helper()
	c, err := net.Dial("udp4", l.address.String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

func (l *datagramLab) counted(slot int, reason Reason) uint64 {
	l.t.Helper()
	c, err := l.node.Counters(slot)
	if err != nil {
		l.t.Fatal(err)
	}
	return c[reason]
}

func reusePort(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(err, failed)
}

func control(t *testing.T, c *net.UDPConn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = do(int(fd)) }), failed); err != nil {
		t.Fatal(err)
	}
}

// initial is a packet with a long header.
func initial(dcid []byte) []byte {
	p := binary.BigEndian.AppendUint32([]byte{0xc3}, 1)
	p = append(append(p, byte(len(dcid))), dcid...)
	return append(p, make([]byte, 60)...)
}

func short(dcid []byte) []byte {
	return append(append([]byte{0x43}, dcid...), make([]byte, 40)...)
}

func cid(id quicid.ID) []byte {
	var c [quicid.Len]byte
	var random [quicid.RandomLen]byte
	binary.NativeEndian.PutUint64(random[:], rand.Uint64())
	quicid.Encode(&c, id, random)
	return c[:]
}

func randomID(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// discard empties every queue.
func (l *datagramLab) discard() {
	b := make([]byte, 4096)
	for _, workers := range l.sockets {
		for _, c := range workers {
			control(l.t, c, func(fd int) error {
				for {
					if _, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT); err != nil {
						return nil
					}
				}
			})
		}
	}
}
