package listener

import (
	"bufio"
	"bytes"
	"net/textproto"
	"testing"
)

// However a head is cut, what is found in it is what the reader that net/http
// uses finds.
func FuzzHead(f *testing.F) {
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 1\r\nTRANSFER-ENCODING:\r\n chunked\r\n\r\nx"), uint8(0))
	f.Add([]byte("POST / HTTP/1.1\nX: Content-Length: 1\n Transfer-Encoding: chunked\n\nContent-Length: 1\n\n"), uint8(7))
	f.Add([]byte("GET / HTTP/1.1\r\nContent-Lengthy: 1\r\nTransfer-Encoding : x\r\n\r\n"), uint8(30))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		r := textproto.NewReader(bufio.NewReader(bytes.NewReader(b)))
		if line, err := r.ReadLine(); err != nil || line == "" {
			return
		}
		header, err := r.ReadMIMEHeader()
		if err != nil {
			return
		}
		var h head
		h.start(serverBuffer, true)
		for rest := b; len(rest) > 0; {
			part := rest[:min(len(rest), int(step)+1)]
			h.follow(part)
			rest = rest[len(part):]
		}
		want := fields{length: header["Content-Length"] != nil, coding: header["Transfer-Encoding"] != nil}
		if got, followed := h.begun(); got != want || !followed || !h.over {
			t.Errorf("%+v, followed %t to the end %t; the other reader has %+v", got, followed, h.over, want)
		}
	})
}
