package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A strict reader of HTTP/1.1. It takes what RFC 9112 lets a sender send and
// nothing that a lenient reader would have to guess at: what it refuses, two
// readers may read two ways.

var (
	strictLine  = regexp.MustCompile(`^([!#$%&'*+.^_` + "`" + `|~0-9A-Za-z-]+) ([\x21\x23-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e\x80-\xff]+) HTTP/1\.1$`)
	strictField = regexp.MustCompile(`^([!#$%&'*+.^_` + "`" + `|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)$`)
	strictChunk = regexp.MustCompile(`^[0-9a-f]{1,8}$`)
	strictCount = regexp.MustCompile(`^(0|[1-9][0-9]{0,8})$`)
)

// strictRequest is a request as the strict reader understands it.
type strictRequest struct {
	method, target string
	fields         map[string]string // by lower case
	chunked        bool
	body           string
}

// unclearError is what the strict reader refuses.
type unclearError string

func (e unclearError) Error() string { return string(e) }

func unclear(format string, args ...any) error { return unclearError(fmt.Sprintf(format, args...)) }

// String is all of it that a smuggler would change.
func (r *strictRequest) String() string {
	framing := ""
	if r.chunked {
		framing = " chunked"
	}
	return fmt.Sprintf("%s %s%s %q", r.method, r.target, framing, r.body)
}

// readStrictLine returns a line without its CRLF.
func readStrictLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsAny(text, "\r\n\x00") {
		return "", unclear("line %q", line)
	}
	octets := make([]rune, 0, len(text)) // as ISO-8859-1, for the expressions
	for _, octet := range []byte(text) {
		octets = append(octets, rune(octet))
	}
	return string(octets), nil
}

// readStrictFields returns the fields up to the empty line, by lower case.
func readStrictFields(r *bufio.Reader) (map[string]string, error) {
	fields := make(map[string]string)
	for {
		line, err := readStrictLine(r)
		if err != nil {
			return nil, noEOF(err)
		}
		if line == "" {
			return fields, nil
		}
		match := strictField.FindStringSubmatch(line)
		if match == nil {
			return nil, unclear("field %q", line)
		}
		name := strings.ToLower(match[1])
		if _, twice := fields[name]; twice && (name == "content-length" || name == "transfer-encoding" || name == "host") {
			return nil, unclear("%s twice", name)
		}
		fields[name] = match[2]
	}
}

// readStrict reads one request. io.EOF means that the sender has ended between two.
func readStrict(r *bufio.Reader) (*strictRequest, error) {
	line, err := readStrictLine(r)
	if err != nil {
		return nil, err
	}
	match := strictLine.FindStringSubmatch(line)
	if match == nil {
		return nil, unclear("request line %q", line)
	}
	req := &strictRequest{method: match[1], target: match[2]}
	if req.fields, err = readStrictFields(r); err != nil {
		return nil, err
	}
	if req.fields["host"] == "" {
		return nil, unclear("no host")
	}
	coding, chunked := req.fields["transfer-encoding"]
	length, counted := req.fields["content-length"]
	switch {
	case chunked && counted:
		return nil, unclear("two framings: %q and %q", coding, length)
	case chunked && coding != "chunked":
		return nil, unclear("transfer-encoding %q", coding)
	case chunked:
		req.chunked = true
		req.body, err = readStrictChunks(r)
	case counted:
		if !strictCount.MatchString(length) {
			return nil, unclear("content-length %q", length)
		}
		n, _ := strconv.Atoi(length)
		body := make([]byte, n)
		_, err = io.ReadFull(r, body)
		req.body = string(body)
	}
	return req, noEOF(err)
}

func readStrictChunks(r *bufio.Reader) (string, error) {
	var body strings.Builder
	for {
		line, err := readStrictLine(r)
		if err != nil {
			return "", err
		}
		if !strictChunk.MatchString(line) {
			return "", unclear("chunk size %q", line)
		}
		n, _ := strconv.ParseInt(line, 16, 64)
		if n == 0 {
			trailer, err := readStrictFields(r)
			for name := range trailer {
				if name != "x" {
					return "", unclear("%s in the trailer", name)
				}
			}
			return body.String(), err
		}
		if _, err := io.CopyN(&body, r, n); err != nil {
			return "", err
		}
		line, err = readStrictLine(r)
		if err != nil {
			return "", err
		}
		if line != "" {
			return "", unclear("%q after a chunk", line)
		}
	}
}

// noEOF is for an end in the middle of something.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// strictOrigin answers requests that the strict reader takes, and remembers them.
type strictOrigin struct {
	address string

	mu      sync.Mutex
	got     []*strictRequest
	refused []string
}

func newStrictOrigin(t testing.TB) *strictOrigin {
	o := new(strictOrigin)
	o.address = serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			req, err := readStrict(r)
			if errors.Is(err, io.EOF) {
				return
			}
			var why unclearError
			o.mu.Lock()
			if errors.As(err, &why) {
				o.refused = append(o.refused, string(why))
			} else if err == nil {
				o.got = append(o.got, req)
			}
			o.mu.Unlock()
			if err != nil {
				return // what is cut off has not been understood by anybody
			}
			answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			if req.method == "HEAD" {
				answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
			}
			io.WriteString(c, answer)
		}
	})
	return o
}

// taken returns what has come since the last call.
func (o *strictOrigin) taken() (got []*strictRequest, refused []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	got, refused = o.got, o.refused
	o.got, o.refused = nil, nil
	return got, refused
}
