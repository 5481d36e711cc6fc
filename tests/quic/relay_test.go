package quic

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// relay passes a client's datagrams on, as a NAT does: from a port for each of the
// client's addresses, which it can change.
type relay struct {
	t     *testing.T
	front *net.UDPConn
	to    *net.UDPAddr

	mu     sync.Mutex
	backs  map[netip.AddrPort]*net.UDPConn // by the client's address
	all    []*net.UDPConn                  // packets on their way may still come by earlier ones
	client netip.AddrPort                  // the newest address
	pass   int                             // datagrams of the client's before the rest is held; negative: all
	held   []func()
	holds  chan struct{} // closed at the first that is held
	strays []func(datagram []byte, back *net.UDPConn)
	closed bool
	loops  sync.WaitGroup

	config atomic.Int32 // of the connection ID in the client's last packet with a short header
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{t: t, pass: -1, backs: map[netip.AddrPort]*net.UDPConn{}}
	var err error
	if r.to, err = net.ResolveUDPAddr("udp", to); err != nil {
		t.Error(err)
	}
	if r.front, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Error(err)
	}
	r.loops.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := r.front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			r.passOn(b[:n], from)
		}
	})
	return r
}

func (r *relay) address() string { return r.front.LocalAddr().String() }

func (r *relay) passOn(datagram []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.client = from
	if len(datagram) > 1 && datagram[0]&0x80 == 0 {
		r.config.Store(int32(datagram[1] >> 5))
	}
	if r.pass == 0 {
		datagram = bytes.Clone(datagram)
		r.held = append(r.held, func() { r.send(datagram, from) })
		if len(r.held) == 1 {
			close(r.holds)
		}
		return
	}
	r.pass--
	r.send(datagram, from)
}

// send sends to the server. r.mu is held.
func (r *relay) send(datagram []byte, from netip.AddrPort) {
	if r.closed {
		return
	}
	back := r.backs[from]
	if back == nil {
		var err error
		if back, err = net.DialUDP("udp", nil, r.to); err != nil {
			r.t.Error(err)
			return
		}
		r.backs[from] = back
		r.answers(back, func() netip.AddrPort { return from })
	}
	back.Write(datagram)
	for _, stray := range r.strays {
		stray(datagram, back)
	}
}

// answers passes on to the client what comes to a socket. r.mu is held.
func (r *relay) answers(from *net.UDPConn, client func() netip.AddrPort) {
	r.all = append(r.all, from)
	r.loops.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			r.front.WriteToUDPAddrPort(b[:n], client())
		}
	})
}

// rebind sends from other ports from now on.
func (r *relay) rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.backs)
}

// holdAfter lets some more datagrams of the client's pass and keeps the others
// until letGo. The channel is closed when there is one.
func (r *relay) holdAfter(pass int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pass, r.holds = pass, make(chan struct{})
	return r.holds
}

func (r *relay) letGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, send := range r.held {
		send()
	}
	r.pass, r.held = -1, nil
}

// alsoTo sends what the client sends to another address, too. What comes from
// there reaches the client.
func (r *relay) alsoTo(address string) (sent, heard *atomic.Int64) {
	sent, heard = new(atomic.Int64), new(atomic.Int64)
	to, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := net.DialUDP("udp", nil, to)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers(c, func() netip.AddrPort {
		heard.Add(1)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.client
	})
	r.strays = append(r.strays, func(datagram []byte, _ *net.UDPConn) {
		sent.Add(1)
		c.Write(datagram)
	})
	return sent, heard
}

// mutate sends to the server, besides each datagram, what strays makes of it.
func (r *relay) mutate(strays func(datagram []byte) [][]byte) (sent *atomic.Int64) {
	sent = new(atomic.Int64)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strays = append(r.strays, func(datagram []byte, back *net.UDPConn) {
		for _, stray := range strays(datagram) {
			sent.Add(1)
			back.Write(stray)
		}
	})
	return sent
}

// close ends the relay when what is on its way, as the client's goodbye, has passed.
func (r *relay) close() {
	time.Sleep(100 * time.Millisecond)
	r.mu.Lock()
	r.closed = true
	for _, c := range append(r.all, r.front) {
		c.Close()
	}
	r.mu.Unlock()
	r.loops.Wait()
}
