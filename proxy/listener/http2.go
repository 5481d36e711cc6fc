package listener

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// session follows the frames of a connection that speaks HTTP/2. It knows which
// streams are open, and can say goodbye between two frames of the server's.
//
// The server's own goodbye names the last stream it has seen, and a request
// that the client is sending at that moment is refused. Not every client sends
// it again: not if its body cannot be had a second time. So the goodbye has two
// parts (RFC 9113, 6.8). The first asks for no more streams but refuses none,
// and is followed by a PING. The answer to the PING says that the client knows:
// whatever it had begun before has arrived. Once those streams have ended,
// nobody can be writing, and the second part closes the connection.
type session struct {
	conn *Conn

	fromClient h2Frames // touched by Read alone

	wanted atomic.Bool // the first part waits for the end of a frame

	writing  sync.Mutex // held for a whole Write; taken before mu
	toClient h2Frames
	greeted  bool     // the server's first frame, its SETTINGS, is out
	told     bool     // the first part is out
	headEnds bool     // the header block on its way ends its stream
	ended    []uint32 // streams that end with the write on its way

	mu    sync.Mutex
	open  map[uint32]struct{}
	last  uint32 // the highest stream of the client's
	knows bool   // the client has answered the PING
	over  bool   // the second part was sent
}

// Frame types and flags (RFC 9113, 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	framePing         = 0x6
	frameGoAway       = 0x7
	frameContinuation = 0x9

	flagAck        = 0x1 // PING
	flagEndStream  = 0x1 // DATA, HEADERS
	flagEndHeaders = 0x4 // HEADERS, CONTINUATION

	maxStream = 1<<31 - 1
)

// pingPayload tells our PING from the server's.
var pingPayload = [8]byte{'g', 'o', 'o', 'd', ' ', 'b', 'y', 'e'}

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// lookForHTTP2 compares the first bytes of the connection with the preface. It
// reports false where TLS has negotiated something else (RFC 9113, 3.2 and 3.4).
func (c *Conn) lookForHTTP2(p []byte) bool {
	if c.preface < 0 {
		return true
	}
	n := min(len(p), len(preface)-c.preface)
	if !bytes.Equal(p[:n], []byte(preface[c.preface:c.preface+n])) {
		c.preface = -1
		return c.negotiated() != "h2"
	}
	if c.preface += n; c.preface < len(preface) {
		return true
	}
	if c.negotiated() == "http/1.1" {
		return false
	}
	h := &session{conn: c, open: make(map[uint32]struct{})}
	c.h2.Store(h)
	c.become(Active, Idle)
	h.received(p[n:])
	// The drain may have gone through the registry before this was in it. A client
	// that has just connected has a request, and some answer our PING while it is
	// on its way: it is told when the request is here (see opened), or stays away.
	if c.registry.draining.Load() {
		time.AfterFunc(firstRequest, h.goAway)
	}
	return true
}

// negotiated is the protocol that TLS was told to carry; empty if it was not.
func (c *Conn) negotiated() string {
	if tls, ok := c.stream.(*tls.Conn); ok {
		return tls.ConnectionState().NegotiatedProtocol
	}
	return ""
}

// firstRequest is how long a client that greets in a drain has for its first
// request before it is told to go.
const firstRequest = time.Second

// received follows what the client has sent.
func (h *session) received(p []byte) {
	for len(p) > 0 {
		n, whole := h.fromClient.next(p)
		p = p[n:]
		if !whole {
			return
		}
		switch f := &h.fromClient; f.kind() {
		case frameHeaders:
			h.opened(f.stream())
		case frameReset:
			h.close(f.stream())
		case framePing:
			if f.flags()&flagAck != 0 && f.payload == pingPayload {
				h.answered()
			}
		}
	}
}

// write sends a part of the server's frames, and our goodbye between two of
// them if it is wanted.
func (h *session) write(p []byte) (int, error) {
	h.writing.Lock()
	defer h.writing.Unlock()
	at := 0
	for at < len(p) {
		end := at
		for end < len(p) {
			n, whole := h.toClient.next(p[end:])
			end += n
			if whole {
				h.sent()
				if h.wanted.Load() && !h.told {
					break
				}
			}
		}
		n, err := h.conn.stream.Write(p[at:end])
		if at += n; err != nil {
			return at, err
		}
		for _, id := range h.ended {
			h.close(id)
		}
		h.ended = h.ended[:0]
		if err := h.tell(); err != nil {
			return at, err
		}
	}
	return at, nil
}

// sent looks at a frame of the server's.
func (h *session) sent() {
	h.greeted = true
	ends := false
	switch f := &h.toClient; f.kind() {
	case frameData:
		ends = f.flags()&flagEndStream != 0
	case frameHeaders:
		h.headEnds = f.flags()&flagEndStream != 0
		ends = h.headEnds && f.flags()&flagEndHeaders != 0
	case frameContinuation:
		ends = h.headEnds && f.flags()&flagEndHeaders != 0
	case frameReset:
		ends = true
	}
	if ends {
		h.ended = append(h.ended, h.toClient.stream())
	}
}

// goAway asks the client for no more streams, now or at the end of the frame on
// its way.
func (h *session) goAway() {
	h.wanted.Store(true)
	h.writing.Lock()
	defer h.writing.Unlock()
	h.tell()
}

// tell writes the first part of the goodbye if it is wanted and may go out. The
// caller holds writing.
func (h *session) tell() error {
	// Between HEADERS and its CONTINUATION nothing may come (RFC 9113, 6.10).
	if !h.wanted.Load() || h.told || !h.greeted || !h.toClient.between() || h.toClient.inHeaders() {
		return nil
	}
	h.told = true
	ping := append([]byte{0, 0, 8, framePing, 0, 0, 0, 0, 0}, pingPayload[:]...)
	_, err := h.conn.stream.Write(append(goAwayFrame(maxStream), ping...))
	return err
}

func goAwayFrame(last uint32) []byte {
	frame := []byte{0, 0, 8, frameGoAway, 0, 0, 0, 0, 0}
	frame = binary.BigEndian.AppendUint32(frame, last)
	return binary.BigEndian.AppendUint32(frame, 0) // NO_ERROR
}

func (h *session) opened(id uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id <= h.last || h.over {
		return // trailers; or the client has been told that it will not be served
	}
	h.last = id
	h.open[id] = struct{}{}
	h.conn.become(Idle, Active)
	if h.conn.registry.draining.Load() && !h.wanted.Load() {
		go h.goAway() // it waits for the write on its way
	}
}

func (h *session) close(id uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open, id)
	if len(h.open) == 0 {
		h.conn.become(Active, Idle)
		h.parted()
	}
}

func (h *session) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.knows = true
	h.parted()
}

// parted ends the connection when nothing keeps it. The caller holds mu.
func (h *session) parted() {
	if len(h.open) == 0 && (h.knows || h.conn.registry.lastCall.Load()) {
		go h.leave() // it waits for the write on its way
	}
}

// streams is the number of open streams.
func (h *session) streams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.open)
}

// leave ends the connection if no stream is open. It is closed idle only if
// the client does not know that it would be.
func (h *session) leave() {
	h.mu.Lock()
	if len(h.open) > 0 || !h.conn.become(Idle, leaving) {
		h.mu.Unlock()
		return
	}
	if !h.knows {
		h.conn.registry.idleClosed.Add(1)
	}
	h.over = true
	last := h.last
	h.mu.Unlock()
	h.end(last)
	h.conn.closeOnceSent()
}

// cut ends the connection under its streams, each of which counts.
func (h *session) cut() {
	h.mu.Lock()
	if !h.conn.become(Active, leaving) {
		h.mu.Unlock()
		return
	}
	h.conn.registry.countCut(len(h.open))
	h.over = true
	last := h.last
	h.mu.Unlock()
	// Whatever is stuck, the client is gone in a moment.
	h.conn.tcp.SetWriteDeadline(time.Now().Add(lingerTime))
	time.AfterFunc(lingerTime, func() { h.conn.tcp.Close() })
	h.end(last)
}

// end sends the second part of the goodbye. The client learns which streams have
// never been looked at, and the end of the connection is the end of the others.
func (h *session) end(last uint32) {
	h.writing.Lock()
	defer h.writing.Unlock()
	if h.greeted && h.toClient.between() && !h.toClient.inHeaders() {
		h.conn.stream.Write(goAwayFrame(last))
	}
	h.conn.stream.CloseWrite()
	h.conn.tcp.CloseWrite()
}

// h2Frames follows the frames of one direction (RFC 9113, 4.1).
type h2Frames struct {
	header  [9]byte
	have    int     // octets of header seen; 0 between frames
	left    int     // octets of the payload to come, once the header is whole
	payload [8]byte // the first octets of the last payload
	block   bool    // a header block is not at its end
}

func (f *h2Frames) kind() byte     { return f.header[3] }
func (f *h2Frames) flags() byte    { return f.header[4] }
func (f *h2Frames) stream() uint32 { return binary.BigEndian.Uint32(f.header[5:]) & maxStream }

// between says that the next octet begins a frame.
func (f *h2Frames) between() bool { return f.have == 0 }

// inHeaders says that the next frame continues a header block.
func (f *h2Frames) inHeaders() bool { return f.block }

// next follows b to the end of the current frame, or of b. It returns how far it
// went, and whether that was the end of the frame.
func (f *h2Frames) next(b []byte) (used int, whole bool) {
	if f.have < len(f.header) {
		used = copy(f.header[f.have:], b)
		if f.have += used; f.have < len(f.header) {
			return used, false
		}
		f.left = f.length()
	}
	n := min(len(b)-used, f.left)
	if at := f.length() - f.left; at < len(f.payload) {
		copy(f.payload[at:], b[used:used+n])
	}
	used += n
	if f.left -= n; f.left > 0 {
		return used, false
	}
	f.have = 0
	if f.kind() == frameHeaders || f.kind() == frameContinuation {
		f.block = f.flags()&flagEndHeaders == 0
	}
	return used, true
}

func (f *h2Frames) length() int {
	return int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
}
