package proxy_test

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A request of HTTP/2 has no framing of its own to confuse. What would become
// one in HTTP/1 does not get there.
func TestDowngradeToHTTP1(t *testing.T) {
	get := []string{":method", "GET", ":scheme", "http", ":authority", "a.example", ":path", "/"}
	with := func(fields ...string) []string { return append(append([]string(nil), get...), fields...) }
	replaced := func(name, value string) []string {
		fields := with()
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == name {
				fields[i+1] = value
			}
		}
		return fields
	}
	tests := []struct {
		name   string
		fields []string
		data   string // in one frame, which ends the stream; empty: HEADERS does
		want   string
	}{
		{"plain", with("x", "1"), "", `GET / ""`},
		{"body", with("content-length", "2"), "ab", `GET / "ab"`},
		{"body without length", with(), "ab", `GET / chunked "ab"`},
		{"length too small", with("content-length", "1"), "ab", "PROTOCOL_ERROR"},
		{"length too large", with("content-length", "3"), "ab", "400"},
		{"length without a body", with("content-length", "3"), "", "400"},
		{"length twice", with("content-length", "2", "content-length", "3"), "ab", "400"},
		{"length with a sign", with("content-length", "+2"), "", "400"},
		{"length that is none", with("content-length", "2\r\nx: 1"), "ab", "PROTOCOL_ERROR"},
		{"transfer-encoding", with("transfer-encoding", "chunked"), "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: b.example\r\n\r\n", "400"},
		{"transfer-encoding by an underscore", with("transfer_encoding", "chunked"), "ab", `GET / chunked "ab"`},
		{"connection", with("connection", "close"), "", "400"},
		{"keep-alive", with("keep-alive", "1"), "", "400"},
		{"upgrade", with("upgrade", "websocket"), "", "400"},
		{"te", with("te", "gzip"), "", "400"},
		{"CRLF in a value", with("x", "1\r\nTransfer-Encoding: chunked"), "", "PROTOCOL_ERROR"},
		{"LF in a value", with("x", "1\nTransfer-Encoding: chunked"), "", "PROTOCOL_ERROR"},
		{"NUL in a value", with("x", "1\x00"), "", "PROTOCOL_ERROR"},
		{"CRLF in a name", with("x: 1\r\ny", "1"), "", "PROTOCOL_ERROR"},
		{"colon in a name", with("transfer-encoding:chunked\r\nx", "1"), "", "PROTOCOL_ERROR"},
		{"capital in a name", with("Content-Length", "0"), "", "PROTOCOL_ERROR"},
		{"empty name", with("", "1"), "", "PROTOCOL_ERROR"},
		{"space before a value", with("x", " 1"), "", `GET / ""`},
		{"method with a line", replaced(":method", "GET / HTTP/1.1\r\nX: 1\r\n\r\nGET"), "", "PROTOCOL_ERROR"},
		{"method with a space", replaced(":method", "GET /b"), "", "400"},
		{"path with a line", replaced(":path", "/ HTTP/1.1\r\nHost: b.example\r\n\r\nGET /x"), "", "PROTOCOL_ERROR"},
		{"path with a space", replaced(":path", "/ HTTP/1.1 /"), "", `GET /%20HTTP/1.1%20/ ""`},
		{"path with a tab", replaced(":path", "/\tx"), "", "PROTOCOL_ERROR"},
		{"path that is none", replaced(":path", "x"), "", "PROTOCOL_ERROR"},
		{"path empty", replaced(":path", ""), "", "PROTOCOL_ERROR"},
		{"path of another host", replaced(":path", "http://b.example/"), "", "400"},
		{"path *", replaced(":path", "*"), "", "400"},
		{"path with octets beyond ASCII", replaced(":path", "/\xff"), "", `GET /%FF ""`},
		{"authority with a line", replaced(":authority", "a.example\r\nX: 1"), "", "PROTOCOL_ERROR"},
		{"authority with a user", replaced(":authority", "u@a.example"), "", "PROTOCOL_ERROR"},
		{"authority with a path", replaced(":authority", "a.example/x"), "", "400"},
		{"authority and host", with("host", "b.example"), "", `GET / ""`},
		{"scheme with a line", replaced(":scheme", "http\r\nX: 1"), "", "PROTOCOL_ERROR"},
		{"scheme of another kind", replaced(":scheme", "ftp"), "", "PROTOCOL_ERROR"},
		{"pseudo-header twice", with(":path", "/b"), "", "PROTOCOL_ERROR"},
		{"pseudo-header at the end", append(with("x", "1"), ":path", "/b"), "", "PROTOCOL_ERROR"},
		{"pseudo-header unknown", append([]string{":x", "1"}, get...), "", "PROTOCOL_ERROR"},
		{"pseudo-header of a response", append([]string{":status", "200"}, get...), "", "PROTOCOL_ERROR"},
		{"no path", get[:6], "", "PROTOCOL_ERROR"},
		{"no method", get[2:], "", "PROTOCOL_ERROR"},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "b.example:443"}, "", "501"},
		{"PRI", replaced(":method", "PRI"), "", "501"},
	}
	o := newStrictOrigin(t)
	n := start(t, o.address, "")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := dialFramed(t, n.web)
			f.greet()
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			for i := 0; i < len(test.fields); i += 2 {
				encoder.WriteField(hpack.HeaderField{Name: test.fields[i], Value: test.fields[i+1]})
			}
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: test.data == ""})
			if test.data != "" {
				f.WriteData(1, true, []byte(test.data))
			}
			happened := f.outcome(1)
			got, refused := o.taken()
			for _, r := range got {
				happened += " " + r.String()
			}
			if happened = strings.TrimPrefix(happened, "200 "); happened != test.want {
				t.Errorf("got  %s, want %s", happened, test.want)
			}
			for _, why := range refused {
				t.Errorf("forwarded what is not clear: %s", why)
			}
		})
	}
}

// outcome is how a stream has ended.
func (f *framed) outcome(id uint32) string {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return "end"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame:
			if frame.StreamID == id {
				return frame.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			return frame.ErrCode.String() // the reset may be on its way too
		}
	}
}
