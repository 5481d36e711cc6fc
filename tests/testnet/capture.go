package testnet

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Frame is what passed an interface.
type Frame struct {
	Data []byte // from the Ethernet header on, with VLAN tags where they stood
	Sent bool   // by the interface's host
}

// Capture takes down every frame of an interface, until the test ends.
type Capture struct {
	t    testing.TB
	fd   int
	done sync.WaitGroup

	mu     sync.Mutex
	frames []Frame
}

// captureBuffer holds some ten thousand frames that have not been read yet.
const captureBuffer = 64 << 20

// Capture begins to take down what passes the host's link, as its network stack
// sees it: behind an XDP program. What an XDP program sends is not seen.
func (h *Host) Capture(t testing.TB) *Capture {
	t.Helper()
	c := &Capture{t: t}
	if err := h.Do(func() error { return c.open(Interface) }); err != nil {
		t.Fatalf("testnet: capture at host %s: %v", h.Name, err)
	}
	return c.run()
}

// CaptureAtSwitch is Capture at the switch's end of the host's link, where what an
// XDP program of the host sends is seen too. Sent is by the switch.
func (h *Host) CaptureAtSwitch(t testing.TB) *Capture {
	t.Helper()
	c := &Capture{t: t}
	if err := doIn(h.hub, func() error { return c.open(h.port) }); err != nil {
		t.Fatalf("testnet: capture at the switch's port of host %s: %v", h.Name, err)
	}
	return c.run()
}

func (c *Capture) open(name string) (err error) {
	if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer},
		{unix.SOL_PACKET, unix.PACKET_AUXDATA, 1},
	} {
		if err := unix.SetsockoptInt(c.fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	// So that the reader sees the end of the test.
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index})
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func (c *Capture) run() *Capture {
	ended := make(chan struct{})
	c.t.Cleanup(func() {
		close(ended)
		c.done.Wait()
		if stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 {
			c.t.Errorf("testnet: a capture has missed %+v frames, %v", stats, err)
		}
		unix.Close(c.fd)
	})
	c.done.Go(func() {
		data, control := make([]byte, 65<<10), make([]byte, 256)
		for {
			n, m, _, from, err := unix.Recvmsg(c.fd, data, control, 0)
			if err == nil {
				link, _ := from.(*unix.SockaddrLinklayer)
				f := Frame{Data: retag(data[:n], control[:m]), Sent: link != nil && link.Pkttype == unix.PACKET_OUTGOING}
				c.mu.Lock()
				c.frames = append(c.frames, f)
				c.mu.Unlock()
				continue
			}
			select {
			case <-ended:
				return
			default:
			}
			if err != unix.EAGAIN && err != unix.EINTR {
				return // the interface is gone
			}
		}
	})
	return c
}

// retag copies a frame and puts a VLAN tag back that the kernel has taken out of it
// (struct tpacket_auxdata, linux/if_packet.h).
func retag(data, control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		messages = nil
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 || len(data) < 12 {
			continue
		}
		if status := binary.NativeEndian.Uint32(m.Data); status&unix.TP_STATUS_VLAN_VALID != 0 {
			tagged := append([]byte(nil), data[:12]...)
			tagged = binary.BigEndian.AppendUint16(tagged, binary.NativeEndian.Uint16(m.Data[18:]))
			tagged = binary.BigEndian.AppendUint16(tagged, binary.NativeEndian.Uint16(m.Data[16:]))
			return append(tagged, data[12:]...)
		}
	}
	return append([]byte(nil), data...)
}

// Frames are those seen so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Frame(nil), c.frames...)
}

// Wait waits until what was seen is enough, and returns it. It fails the test when
// it is not within a minute.
func (c *Capture) Wait(enough func([]Frame) bool) []Frame {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		frames := c.Frames()
		if enough(frames) {
			return frames
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("testnet: of the frames that should come %d have been seen", len(frames))
		}
	}
}

// Inject sends frames out of the host's link as they are.
func (h *Host) Inject(frames ...[]byte) error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		link, err := netlink.LinkByName(Interface)
		if err != nil {
			return err
		}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}); err != nil {
				return err
			}
		}
		return nil
	})
}

// MAC is the address of the host's link.
func (h *Host) MAC() (mac [6]byte, err error) {
	err = h.Do(func() error {
		link, err := netlink.LinkByName(Interface)
		if err == nil {
			mac = [6]byte(link.Attrs().HardwareAddr)
		}
		return err
	})
	return mac, err
}
