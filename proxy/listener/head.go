package listener

import "bytes"

// head follows the head of a request of HTTP/1 for the fields that say how its
// body is framed. net/http takes Transfer-Encoding's word where there are both,
// ignores it in HTTP/1.0, and in both cases does not tell.
type head struct {
	fields // of the head that begins with the last start

	line    [len("transfer-encoding:")]byte // the first octets of the line
	have    int                             // of line
	request bool                            // the request line has gone by
	over    bool                            // the head is at its end, or no head is followed
	taken   bool                            // by begun
}

// fields are what a head says of the body behind it.
type fields struct {
	length bool // it has Content-Length
	coding bool // it has Transfer-Encoding
}

// serverBuffer is the size of the buffer that net/http reads heads into. Between
// requests it waits until it has peeked octets of the next.
const (
	serverBuffer = 4096
	peeked       = 4
)

// start begins to follow a head that net/http has room of that many octets for.
// Less room than there would be says that it has some of the head already, which
// came behind the request before: then nothing is known of it.
func (h *head) start(room int, first bool) {
	*h = head{over: !first && (room > serverBuffer || room <= serverBuffer-peeked)}
	h.taken = h.over
}

// follow goes on to the end of the head, or of p.
func (h *head) follow(p []byte) {
	for len(p) > 0 && !h.over {
		end := bytes.IndexByte(p, '\n')
		part := p
		if end >= 0 {
			part = p[:end]
		}
		h.have += copy(h.line[h.have:], part)
		if end < 0 {
			return
		}
		p = p[end+1:]
		h.ended(bytes.TrimSuffix(h.line[:h.have], []byte("\r")))
		h.have = 0
	}
}

// ended looks at a line of which it gets the beginning.
func (h *head) ended(line []byte) {
	switch {
	case len(line) == 0:
		h.over = h.request // an empty line before the request is passed over
	case !h.request:
		h.request = true
	case begins(line, "content-length:"):
		h.length = true
	case begins(line, "transfer-encoding:"):
		h.coding = true
	}
}

func begins(line []byte, name string) bool {
	return len(line) >= len(name) && bytes.EqualFold(line[:len(name)], []byte(name))
}

// begun is what the head has said, once net/http has understood it. It reports
// false for one that was not followed.
func (h *head) begun() (fields, bool) {
	followed := !h.taken
	h.taken = true
	return h.fields, followed
}

// Framing is how the heads of requests of HTTP/1 have said that their bodies end.
type Framing int

// What there is to do about a head. A body that one reader ends in another place
// than the next is how requests are smuggled (RFC 9112, 11.2).
const (
	Clear   Framing = iota
	Unclear         // it came along with the request before: this may be the last of its connection
	TwoWays         // both fields, or Transfer-Encoding in HTTP/1.0 (RFC 9112, 6.1): it is not served
)

// Framing judges the head of the request that has just begun. old is HTTP/1.0,
// chunked is what the server takes the body for.
func (c *Conn) Framing(old, chunked bool) Framing {
	said, followed := c.head.begun()
	switch {
	case c.h2.Load() != nil:
		return Clear
	case !followed && (old || chunked):
		return Unclear
	case followed && said.coding && (said.length || old):
		return TwoWays
	default:
		return Clear
	}
}
