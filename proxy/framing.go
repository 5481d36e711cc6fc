package proxy

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/baton-mesh/baton/proxy/listener"
)

// requestBody remembers how reading the request has ended, to tell the client's
// faults from the upstream's.
type requestBody struct {
	io.ReadCloser
	failed  atomic.Bool
	whole   atomic.Bool // the end has been read
	atWhole func()      // called then, by whoever has read it; nil: nothing
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		if !b.whole.Swap(true) && b.atWhole != nil {
			b.atWhole()
		}
	default:
		b.failed.Store(true)
	}
	return n, err
}

// endUnlessWhole ends the connection after the response to a request in chunks
// of which the end has not been read. net/http would read on to find it, and
// take for the next request whatever follows the first fault.
func (b *requestBody) endUnlessWhole(w http.ResponseWriter) {
	if !b.whole.Load() {
		endConnection(w)
	}
}

// chunkedBody is the body of a request of HTTP/1 in chunks. Of its trailer only
// what the request has announced stays: an upstream may read the rest as if it
// were of the head.
func chunkedBody(r *http.Request) *requestBody {
	announced := slices.Collect(maps.Keys(r.Trailer))
	return &requestBody{ReadCloser: r.Body, atWhole: func() {
		maps.DeleteFunc(r.Trailer, func(name string, _ []string) bool { return !slices.Contains(announced, name) })
	}}
}

// vouched are fields that upstreams believe us, and those that belong to one
// connection. None may come in a trailer, or by a name that is spelled almost so.
var vouched = map[string]bool{
	"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Traceparent": true,
	"Forwarded": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true,
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Upgrade": true,
}

// dropTrailers takes out of what the request announces what may not come there.
func dropTrailers(r *http.Request) {
	maps.DeleteFunc(r.Trailer, func(name string, _ []string) bool { return vouched[name] })
}

// dropAlmostOurs takes out fields with an underscore where one that we vouch for
// has a dash: to CGI, and what came after it, both are one.
func dropAlmostOurs(fields http.Header) {
	for name := range fields {
		if strings.IndexByte(name, '_') >= 0 && vouched[http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))] {
			delete(fields, name)
		}
	}
}

// endConnection makes the response to a request of HTTP/1 the last one of its
// connection, also when its head is out.
func endConnection(w http.ResponseWriter) {
	// A body that exceeds its limit is the one cause that net/http takes at any
	// time: here one octet where none is allowed.
	http.MaxBytesReader(w, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}

// refusal is why the request is not served whatever its route; nil if it may be.
func (w *response) refusal(r *http.Request) *failure {
	if r.ProtoMajor > 1 && malformed(r) {
		return &failMalformed
	}
	if conn, ok := listener.FromContext(r.Context()).(*listener.Conn); ok && r.ProtoMajor == 1 {
		switch conn.Framing(r.ProtoMinor == 0, len(r.TransferEncoding) > 0) {
		case listener.TwoWays:
			endConnection(w.ResponseWriter)
			return &failMalformed
		case listener.Unclear:
			endConnection(w.ResponseWriter)
		case listener.Clear:
		}
	}
	switch {
	case r.Method == http.MethodConnect:
		return &failMethod
	case r.Method == "PRI": // the first word of HTTP/2, and no method of anything (RFC 9113, 11.6)
		return &failMethod
	case r.RequestURI == "*" && r.Method != http.MethodOptions: // RFC 9112, 3.2.4
		return &failMalformed
	}
	return nil
}

// malformed finds in a request of HTTP/2 or HTTP/3 what its server lets by, and
// what would change when it becomes one of HTTP/1 (RFC 9113, 8.3.1 and 8.1.1).
func malformed(r *http.Request) bool {
	const hostMarks = "!$%&()*+,-.:;=[]'_~"
	lengths := r.Header["Content-Length"]
	switch {
	case len(lengths) > 1, len(lengths) == 1 && r.ContentLength == 0 && lengths[0] != "0":
		return true
	case strings.ContainsFunc(r.Method, notIn("!#$%&'*+-.^_`|~")), strings.ContainsFunc(r.Host, notIn(hostMarks)):
		return true
	default:
		return r.Method != http.MethodConnect && r.RequestURI != "*" && !strings.HasPrefix(r.RequestURI, "/")
	}
}

// notIn tells what is neither a letter, a digit nor one of marks.
func notIn(marks string) func(rune) bool {
	return func(c rune) bool {
		letter, digit := 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9'
		return !letter && !digit && !strings.ContainsRune(marks, c)
	}
}

// routedPath is the path that the request is routed by.
func routedPath(r *http.Request) string {
	if r.RequestURI == "*" {
		return "/" // asks about the server as a whole
	}
	return r.URL.Path
}
