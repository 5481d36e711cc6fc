package proxy

import "encoding/hex"

// traceContext is what a traceparent field says (W3C Trace Context, 3.2). The
// zero value is that of a request without one, or with one that says nothing.
type traceContext struct {
	traceID  [16]byte
	parentID [8]byte
	flags    byte
	sampled  bool
}

const (
	traceparentLength = 55 // of version 00; later ones may be longer
	sampledFlag       = 0x01
)

// parseTraceparent reads version-traceid-parentid-flags, all in lower-case hex.
func parseTraceparent(field string) (c traceContext) {
	if len(field) < traceparentLength || field[2] != '-' || field[35] != '-' || field[52] != '-' {
		return traceContext{}
	}
	for i := range traceparentLength {
		if field[i] >= 'A' && field[i] <= 'F' {
			return traceContext{}
		}
	}
	var version, flags [1]byte
	var text [traceparentLength]byte // on the stack
	copy(text[:], field)
	for _, part := range []struct{ to, from []byte }{
		{version[:], text[0:2]}, {c.traceID[:], text[3:35]}, {c.parentID[:], text[36:52]}, {flags[:], text[53:55]},
	} {
		if _, err := hex.Decode(part.to, part.from); err != nil {
			return traceContext{}
		}
	}
	longer := len(field) > traceparentLength
	if version[0] == 0xff || version[0] == 0 && longer || longer && field[traceparentLength] != '-' ||
		c.traceID == [16]byte{} || c.parentID == [8]byte{} {
		return traceContext{}
	}
	c.flags, c.sampled = flags[0], flags[0]&sampledFlag != 0
	return c
}

// child is the field for a request made on behalf of this one, by a span of ours.
// Of later versions it keeps what version 00 has.
func (c *traceContext) child(span [8]byte) string {
	b := make([]byte, 0, traceparentLength)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, c.traceID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, span[:])
	b = append(b, '-')
	return string(hex.AppendEncode(b, []byte{c.flags}))
}
