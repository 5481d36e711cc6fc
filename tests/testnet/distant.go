package testnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/baton-mesh/baton/tests/need"
)

const (
	// tunDevice is the kernel's way to make an interface out of a descriptor.
	tunDevice = "/dev/net/tun"
	// queueLength is how many packets the kernel keeps for us to fetch; twice as
	// many may be under way in each direction. It drops what is more, but all of
	// them are 45 MB, the windows of dozens of connections at full speed.
	queueLength = 10_000
	// largestPacket is the most an interface of this kind hands over at once.
	largestPacket = 64 << 10
)

// Distant makes two hosts joined by a link on which each packet takes half of
// rtt, in order and without loss: a packet lost fails the test. So a handshake
// takes rtt, and is half open at the server for as long, which no virtual link
// of the kernel can show without the netem queue, an option that kernels for
// virtual machines leave out.
//
// The link carries IP packets: the hosts have no hardware addresses.
func Distant(t testing.TB, rtt time.Duration, one, other string) (*Host, *Host) {
	t.Helper()
	return Through(t, rtt, func(_ *Host, packet []byte) []byte { return packet }, one, other)
}

// Through is Distant with a middlebox on the link: box gets each packet, which is
// its own, and returns what goes on in its place; nil is nothing. It is called by
// one goroutine for each direction.
func Through(t testing.TB, rtt time.Duration, box func(from *Host, packet []byte) []byte, one, other string) (*Host, *Host) {
	t.Helper()
	need.Root(t, "network namespaces")
	a, b := newHost(t, one, 1), newHost(t, other, 2)
	joined := [2]end{{host: a, link: Interface}, {host: b, link: Interface}}
	start := join(t, joined)
	for _, h := range []*Host{a, b} {
		if err := h.start(); err != nil {
			t.Fatalf("testnet: host %s: %v", h.Name, err)
		}
	}
	start(rtt, box)
	return a, b
}

// Behind makes a host behind another one of [New], which forwards for it, by a link
// with a middlebox as in [Through]. Its address is 10.78.0.2, the other's 10.78.0.1.
func Behind(t testing.TB, gateway *Host, box func(from *Host, packet []byte) []byte, name string) *Host {
	t.Helper()
	h := newHost(t, name, 2)
	h.Addr4, h.Addr6 = netip.AddrFrom4([4]byte{10, 78, 0, 2}), netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x78, 15: 2})
	const link = "behind"
	start := join(t, [2]end{{host: h, link: Interface}, {host: gateway, link: link}})
	err := h.start()
	if err == nil {
		err = gateway.Do(func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			return errors.Join(
				netlink.LinkSetUp(l),
				netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 78, 0, 1), Mask: net.CIDRMask(24, 32)}}),
				os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
		})
	}
	if err == nil {
		err = h.Route("0.0.0.0/0", netip.AddrFrom4([4]byte{10, 78, 0, 1}))
	}
	if err != nil {
		t.Fatalf("testnet: host %s: %v", h.Name, err)
	}
	start(0, box)
	return h
}

// end is a link's, which carries what the file has.
type end struct {
	host *Host
	link string
	file *os.File
}

// join makes the two ends of a link. start, to be called when both are up, begins
// to carry: the kernel keeps what has been sent before, and what is delivered to
// an interface that is not up is dropped.
func join(t testing.TB, ends [2]end) (start func(rtt time.Duration, box func(from *Host, packet []byte) []byte)) {
	t.Helper()
	var carriers sync.WaitGroup
	t.Cleanup(func() {
		for _, e := range ends {
			if e.file == nil {
				continue
			}
			if n, err := e.host.lost(e.link); n > 0 || err != nil {
				t.Errorf("testnet: %d packets were lost at host %s, %v", n, e.host.Name, err)
			}
			e.file.Close()
		}
		carriers.Wait()
	})
	for i := range ends {
		e := &ends[i]
		var err error
		if e.file, err = e.host.openLink(e.link); err != nil {
			t.Fatalf("testnet: host %s: %v", e.host.Name, err)
		}
	}
	return func(rtt time.Duration, box func(from *Host, packet []byte) []byte) {
		for i, from := range ends {
			carriers.Go(func() {
				carry(from.file, ends[1-i].file, rtt/2, func(packet []byte) []byte { return box(from.host, packet) })
			})
		}
	}
}

// carry takes packets from one end and delivers each at the other when its time
// has come, until the ends are closed.
func carry(from, to *os.File, delay time.Duration, box func([]byte) []byte) {
	type packet struct {
		due  time.Time
		data []byte
	}
	// All take equally long, so the order they come in is the order they are due in.
	under := make(chan packet, 2*queueLength)
	var delivery sync.WaitGroup
	delivery.Go(func() {
		for p := range under {
			time.Sleep(time.Until(p.due))
			// What fails here has been counted by the kernel, or the link is closed.
			to.Write(p.data)
		}
	})
	defer delivery.Wait()
	defer close(under)
	buf := make([]byte, largestPacket)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if data := box(append([]byte(nil), buf[:n]...)); data != nil {
			under <- packet{time.Now().Add(delay), data}
		}
	}
}

// openLink makes a link of the host out of a descriptor that reads what the host
// sends, one packet at a time, and writes what it receives.
func (h *Host) openLink(name string) (end *os.File, err error) {
	err = h.Do(func() error { // the interface appears where the descriptor was opened
		fd, err := openTun()
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("make its link: %w", err)
		}
		// Not before: the runtime cannot poll a descriptor that has no interface yet.
		end = os.NewFile(uintptr(fd), tunDevice)
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetTxQLen(link, queueLength)
	})
	if err != nil && end != nil {
		end.Close()
	}
	return end, err
}

// openTun opens the device, which containers often lack.
func openTun() (int, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open(tunDevice, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(os.MkdirAll(filepath.Dir(tunDevice), 0o755),
			unix.Mknod(tunDevice, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
		if err == nil {
			fd, err = unix.Open(tunDevice, flags, 0)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	return fd, nil
}

// lost is how many packets a link of the host has dropped, in either direction.
func (h *Host) lost(name string) (n uint64, err error) {
	err = h.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		s := link.Attrs().Statistics
		n = s.TxDropped + s.RxDropped + s.TxErrors + s.RxErrors
		return nil
	})
	return n, err
}
