package quic

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

// relay passes the datagrams of one client on, from a port that it can change.
type relay struct {
	t     *testing.T
	front *net.UDPConn
	to    *net.UDPAddr

	mu     sync.Mutex
	client *net.UDPAddr
	back   *net.UDPConn
	old    []*net.UDPConn // packets on their way may still come by them
	closed bool
	pass   int // datagrams of the client's before the rest is held; negative: all
	held   [][]byte
	holds  chan struct{} // closed at the first that is held
	loops  sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	r := &relay{t: t, pass: -1}
	var err error
	if r.to, err = net.ResolveUDPAddr("udp", to); err != nil {
		t.Error(err)
	}
	if r.front, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Error(err)
	}
	r.rebind()
	r.loops.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := r.front.ReadFromUDP(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.client = from
			if r.pass == 0 {
				if r.held = append(r.held, bytes.Clone(b[:n])); len(r.held) == 1 {
					close(r.holds)
				}
			} else {
				r.pass--
				r.back.Write(b[:n])
			}
			r.mu.Unlock()
		}
	})
	return r
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
	for _, datagram := range r.held {
		r.back.Write(datagram)
	}
	r.pass, r.held = -1, nil
}

func (r *relay) address() string { return r.front.LocalAddr().String() }

// rebind sends from another port from now on.
func (r *relay) rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	back, err := net.DialUDP("udp", nil, r.to)
	if err != nil {
		r.t.Error(err)
		return
	}
	if r.back != nil {
		r.old = append(r.old, r.back)
	}
	r.back = back
	r.loops.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := back.Read(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			client := r.client
			r.mu.Unlock()
			if client != nil {
				r.front.WriteToUDP(b[:n], client)
			}
		}
	})
}

// close ends the relay when what is on its way, as the client's goodbye, has passed.
func (r *relay) close() {
	time.Sleep(100 * time.Millisecond)
	r.mu.Lock()
	r.closed = true
	for _, c := range append(r.old, r.back, r.front) {
		c.Close()
	}
	r.mu.Unlock()
	r.loops.Wait()
}
