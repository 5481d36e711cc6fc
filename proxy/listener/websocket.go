package listener

import (
	"bufio"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// goingAway is a close frame with status 1001 (RFC 6455, 7.4.1), unmasked as a
// server's frames are.
var goingAway = []byte{0x88, 0x02, 0x03, 0xe9}

// upgraded is a connection after 101. Where it carries WebSocket frames it
// follows them, so that a close frame of ours falls between two of the
// server's and not into one.
type upgraded struct {
	*Conn
	head      *bufio.Reader // what came with the request
	webSocket bool

	fromClient frames        // touched by Read alone
	peerClosed chan struct{} // closed when the client's close frame has been read

	wanted atomic.Bool // goAway waits for the end of a frame

	mu       sync.Mutex // held for a whole Write
	toClient frames
	away     bool // our close frame is out: nothing may follow it
}

// Read returns first what the client had sent along with its request.
func (u *upgraded) Read(p []byte) (n int, err error) {
	if u.head.Buffered() > 0 {
		n, err = u.head.Read(p[:min(len(p), u.head.Buffered())])
	} else {
		n, err = u.stream.Read(p)
	}
	if err != nil {
		u.note(err)
	}
	if u.webSocket {
		for rest := p[:n]; len(rest) > 0 && !u.fromClient.closed; {
			rest = rest[u.fromClient.next(rest):]
			if u.fromClient.closed {
				close(u.peerClosed)
			}
		}
	}
	return n, err
}

// Write passes the server's bytes on. After our close frame it drops them: the
// client has been told that none will come.
func (u *upgraded) Write(p []byte) (int, error) {
	if !u.webSocket {
		return u.stream.Write(p)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.away {
		return len(p), nil
	}
	end := 0
	for end < len(p) {
		end += u.toClient.next(p[end:])
		if u.toClient.between() && u.wanted.Load() {
			break
		}
	}
	if n, err := u.stream.Write(p[:end]); err != nil {
		return n, err
	}
	return len(p), u.sendGoingAway()
}

// goAway sends the close frame, now or at the end of the frame on its way, and
// waits for the client's answer.
func (u *upgraded) goAway(wait time.Duration) {
	u.wanted.Store(true)
	u.mu.Lock()
	err := u.sendGoingAway()
	u.mu.Unlock()
	if err != nil {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-u.peerClosed:
	case <-timer.C:
	}
}

// sendGoingAway writes the close frame if it is wanted and a frame may begin.
// The caller holds mu.
func (u *upgraded) sendGoingAway() error {
	if !u.wanted.Load() || u.away || u.toClient.closed || !u.toClient.between() {
		return nil
	}
	u.away = true
	_, err := u.stream.Write(goingAway)
	return err
}

// frames follows the frames of one direction (RFC 6455, 5.2).
type frames struct {
	header [14]byte // 2, up to 8 of length, 4 of mask
	have   int      // octets of header seen; 0 between frames
	left   uint64   // octets of the payload to come, once the header is whole
	closed bool     // a close frame has gone by
}

// between says that the next octet begins a frame.
func (f *frames) between() bool { return f.have == 0 }

// next follows b to the end of the current frame, or of b, and returns how far it went.
func (f *frames) next(b []byte) int {
	used := 0
	for f.have < f.headerLen() {
		if used == len(b) {
			return used
		}
		f.header[f.have] = b[used]
		f.have++
		used++
		if f.have == f.headerLen() {
			f.left = f.payloadLen()
		}
	}
	n := min(uint64(len(b)-used), f.left)
	f.left -= n
	if f.left == 0 {
		const opcode, closeFrame = 0x0f, 0x8
		f.closed = f.closed || f.header[0]&opcode == closeFrame
		f.have = 0
	}
	return used + int(n)
}

// headerLen is the length of the header as far as it is known.
func (f *frames) headerLen() int {
	n := 2
	if f.have < n {
		return n
	}
	switch f.header[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if masked := f.header[1]&0x80 != 0; masked {
		n += 4
	}
	return n
}

func (f *frames) payloadLen() uint64 {
	switch n := f.header[1] & 0x7f; n {
	case 126:
		return uint64(binary.BigEndian.Uint16(f.header[2:]))
	case 127:
		return binary.BigEndian.Uint64(f.header[2:])
	default:
		return uint64(n)
	}
}
