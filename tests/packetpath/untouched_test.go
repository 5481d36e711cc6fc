package packetpath

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/baton-mesh/baton/tests/node"
	"github.com/baton-mesh/baton/tests/testnet"
)

// What is not for a VIP comes through the balancer's program as it was sent, octet
// by octet, while packets for the VIP are forwarded.
func TestOthersAreNotTouched(t *testing.T) {
	hosts := testnet.New(t, "sender", "balancer", "node")
	sender, host := hosts[0], hosts[1]
	l := &lab{t: t, ids: true, nodes: []*labNode{{name: "node", host: hosts[2], id: 11}}}
	b := l.startBalancer(host)

	from, err1 := sender.MAC()
	to, err2 := host.MAC()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	f := framer{from: from, to: to, source: sender.Addr4, dest: host.Addr4, random: rand.New(rand.NewPCG(1, 2))}
	frames := f.all()

	injectedOthers, injectedVIP := 0, 0
	// Between them, packets for the VIP, which the host must not see.
	var mixed [][]byte
	for i, frame := range frames {
		mixed = append(mixed, frame)
		if i%4 == 0 {
			mixed = append(mixed, f.forVIP())
		}
	}
	sent, received, forwarded := sender.Capture(t), host.Capture(t), hosts[2].Capture(t)
	theirs := func(frames []testnet.Frame, sent bool) (some [][]byte) {
		for _, f := range frames {
			if f.Sent == sent && len(f.Data) >= 12 && [6]byte(f.Data) == to && [6]byte(f.Data[6:]) == from && !isForVIP(f.Data) {
				some = append(some, f.Data)
			}
		}
		return some
	}
	// Each as often as it was sent: which of two CPUs is quicker is the kernel's matter.
	balance := func() (missing, strange [][]byte) {
		left := map[string]int{}
		for _, f := range theirs(sent.Frames(), true) {
			left[string(f)]++
		}
		for _, f := range theirs(received.Frames(), false) {
			left[string(f)]--
		}
		for f, n := range left {
			switch {
			case n > 0:
				missing = append(missing, []byte(f))
			case n < 0:
				strange = append(strange, []byte(f))
			}
		}
		return missing, strange
	}
	arrived := func() bool {
		for deadline := time.Now().Add(node.Enough); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			missing, strange := balance()
			if len(missing) == 0 && len(strange) == 0 && len(theirs(sent.Frames(), true)) >= injectedOthers {
				return true
			}
		}
		return false
	}
	conversation := f.talk(t, sender, host)
	const batch = 250 // the kernel drops what does not fit into a CPU's backlog
	for all := true; all && len(mixed) > 0; all = arrived() {
		n := min(batch, len(mixed))
		if err := sender.Inject(mixed[:n]...); err != nil {
			t.Fatal(err)
		}
		for _, frame := range mixed[:n] {
			if !isForVIP(frame) {
				injectedOthers++
			} else {
				injectedVIP++
			}
		}
		mixed = mixed[n:]
	}
	conversation()
	if !arrived() {
		t.Error("not everything came as it was sent")
	}
	missing, strange := balance()
	for i := range min(3, len(missing)) {
		t.Errorf("never came: % x", missing[i])
	}
	for i := range min(3, len(strange)) {
		t.Errorf("came, and was not sent: % x", strange[i])
	}
	for _, f := range received.Frames() {
		if !f.Sent && isForVIP(f.Data) {
			t.Fatalf("the balancer's own stack got % x", f.Data)
		}
	}
	count := func(frames []testnet.Frame) (n int) {
		for _, f := range frames {
			if !f.Sent && isForVIP(f.Data) {
				n++
			}
		}
		return n
	}
	t.Cleanup(func() {
		if out, _ := b.baton("status"); t.Failed() {
			t.Logf("%d packets were sent to the VIP\n%s", injectedVIP, out)
		}
	})
	forwarded.Wait(func(frames []testnet.Frame) bool { return count(frames) >= injectedVIP })
	t.Logf("%d frames for others came unchanged", len(theirs(received.Frames(), false)))
}

// isForVIP reports whether a frame is what forVIP makes.
func isForVIP(frame []byte) bool {
	return len(frame) >= 38 && binary.BigEndian.Uint16(frame[12:]) == 0x0800 &&
		netip.AddrFrom4([4]byte(frame[30:])) == vip && frame[23] == 6 && binary.BigEndian.Uint16(frame[36:]) == vipTCP.Port()
}

// framer makes frames from a host to another.
type framer struct {
	from, to     [6]byte
	source, dest netip.Addr
	random       *rand.Rand
}

func (f framer) octets(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(f.random.Uint32())
	}
	return b
}

// ethernet puts a header before a payload, and pads it to the least there is.
func (f framer) ethernet(kind uint16, payload []byte) []byte {
	b := append(append([]byte(nil), f.to[:]...), f.from[:]...)
	b = append(binary.BigEndian.AppendUint16(b, kind), payload...)
	if len(b) < 60 {
		b = append(b, make([]byte, 60-len(b))...)
	}
	return b
}

// ip puts a header before a payload; options are multiples of four octets.
func (f framer) ip(to netip.Addr, protocol byte, fragment uint16, options, payload []byte) []byte {
	head := 20 + len(options)
	b := make([]byte, head, head+len(payload))
	b[0], b[8], b[9] = 0x40|byte(head/4), 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(head+len(payload)))
	binary.BigEndian.PutUint16(b[6:], fragment)
	copy(b[12:], f.source.AsSlice())
	copy(b[16:], to.AsSlice())
	copy(b[20:], options)
	var sum uint32
	for i := 0; i < head; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return f.ethernet(0x0800, append(b, payload...))
}

func (f framer) tcp(port uint16, flags byte, options, payload []byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, uint16(1024+f.random.IntN(60000)))
	binary.BigEndian.PutUint16(b[2:], port)
	b[12], b[13] = byte((20+len(options))/4)<<4, flags
	return append(append(b, options...), payload...)
}

func (f framer) udp(port uint16, payload []byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, uint16(1024+f.random.IntN(60000)))
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

func (f framer) forVIP() []byte {
	return f.ip(vip, 6, 0, nil, f.tcp(vipTCP.Port(), testnet.SYN, nil, nil))
}

// all are frames of many kinds, none for a VIP.
func (f framer) all() (all [][]byte) {
	nops := bytes.Repeat([]byte{1}, 40)
	option := append([]byte{0xb7, 6, 0, 0, 0, 11}, 1, 1)
	ping := append([]byte{8, 0, 0, 0}, f.octets(56)...)
	const more, second = 0x2000, 0x0010
	tagged := func(tags []uint16, frame []byte) []byte {
		b := append([]byte(nil), frame[:12]...)
		for _, kind := range tags {
			b = append(binary.BigEndian.AppendUint16(b, kind), 0, 7)
		}
		return append(b, frame[12:]...)
	}
	ipv6 := func(next byte, payload []byte) []byte {
		b := make([]byte, 40)
		b[0], b[6], b[7] = 0x60, next, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b[8], b[23], b[24], b[39] = 0xfd, 1, 0xfd, 2
		return f.ethernet(0x86dd, append(b, payload...))
	}
	for _, to := range []netip.Addr{f.dest, vip} {
		all = append(all,
			f.ip(to, 6, 0, nil, f.tcp(22, testnet.SYN, nil, nil)), // a port that is no VIP's
			f.ip(to, 6, 0, nil, f.tcp(22, testnet.ACK, option, f.octets(100))),
			f.ip(to, 6, 0, nil, f.tcp(22, testnet.ACK, nops, f.octets(1400))),
			f.ip(to, 17, 0, nil, f.udp(53, f.octets(30))),
			f.ip(to, 17, 0, nil, f.udp(vipTCP.Port(), f.octets(30))), // another protocol's
			f.ip(to, 1, 0, nil, ping),
			f.ip(to, 1, more, nil, ping),
			f.ip(to, 17, more, nil, f.udp(53, f.octets(120))),
			f.ip(to, 17, second, nil, f.octets(60)),
			f.ip(to, 47, 0, nil, f.octets(40)),   // GRE
			f.ip(to, 132, 0, nil, f.octets(200)), // SCTP
			f.ip(to, 6, 0, []byte{7, 7, 4, 0, 0, 0, 0, 0}, f.tcp(22, testnet.SYN, nil, nil)),
		)
	}
	all = append(all,
		f.ip(f.dest, 6, 0, nil, f.tcp(vipTCP.Port(), testnet.SYN, nil, nil)), // a VIP's port, the host's address
		f.ip(f.dest, 17, 0, nil, f.udp(vipQUIC.Port(), f.octets(1200))),
		f.ip(netip.AddrFrom4([4]byte{224, 0, 0, 251}), 17, 0, nil, f.udp(5353, f.octets(30))),
		f.ip(netip.AddrFrom4([4]byte{10, 9, 0, 2}), 6, 0, nil, f.tcp(vipTCP.Port(), testnet.SYN, nil, nil)), // the VIP's neighbour
		ipv6(6, f.tcp(vipTCP.Port(), testnet.SYN, nil, nil)), ipv6(17, f.udp(vipQUIC.Port(), f.octets(300))), ipv6(0, f.octets(64)), ipv6(44, f.octets(64)),
		f.ethernet(0x0806, append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, f.octets(20)...)), // ARP
		f.ethernet(0x88b5, f.octets(46)), f.ethernet(0x8100, nil), f.ethernet(40, f.octets(60)), f.ethernet(0x0800, []byte{0x45}),
		tagged([]uint16{0x8100}, f.ip(f.dest, 6, 0, nil, f.tcp(80, testnet.SYN, nil, nil))),
		tagged([]uint16{0x88a8, 0x8100}, f.ip(f.dest, 17, 0, nil, f.udp(80, f.octets(50)))),
		tagged([]uint16{0x8100}, ipv6(17, f.udp(80, f.octets(50)))),
	)
	lying := f.ip(f.dest, 6, 0, nil, f.tcp(22, testnet.ACK, nil, nil))
	lying[46] = 0xf0 // TCP's header longer than the packet
	all = append(all, lying)
	kinds := len(all)
	for i := range 2000 {
		frame := append([]byte(nil), all[i%kinds]...)
		if i%2 == 0 { // noise behind the addresses
			copy(frame[34:], f.octets(len(frame)-34))
		}
		if i%5 == 0 {
			frame = frame[:14+f.random.IntN(len(frame)-14)]
		}
		if len(frame) < 60 {
			frame = append(frame, make([]byte, 60-len(frame))...)
		}
		if !isForAnyVIP(frame) {
			all = append(all, frame)
		}
	}
	return all
}

// isForAnyVIP is careful: noise may have made a VIP's port, or an error message of
// ICMP about a flow of a VIP.
func isForAnyVIP(frame []byte) bool { return bytes.Contains(frame[14:], vip.AsSlice()) }

// talk moves octets both ways between the hosts, by TCP; the function returned
// waits for their end.
func (f framer) talk(t *testing.T, sender, host *testnet.Host) (wait func()) {
	t.Helper()
	l, err := host.Listen(netip.AddrPortFrom(host.Addr4, 7000).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := sender.Dial("tcp", netip.AddrPortFrom(host.Addr4, 7000))
	if err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	both.Go(func() {
		s, err := l.Accept()
		if err == nil {
			io.Copy(s, s)
			s.Close()
		}
	})
	both.Go(func() {
		c.Write(make([]byte, 1<<18))
		c.(*net.TCPConn).CloseWrite()
	})
	both.Go(func() {
		if n, err := io.Copy(io.Discard, c); n != 1<<18 || err != nil {
			t.Errorf("of the conversation came %d octets, %v", n, err)
		}
	})
	return func() { both.Wait(); c.Close() }
}
