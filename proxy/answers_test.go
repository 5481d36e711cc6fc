package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// What an upstream answers reaches its client alone, whole or seen to be cut.
func TestAmbiguousAnswers(t *testing.T) {
	const ok, chunked = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	const invalid = `502 "the upstream gave no valid response\n"`
	const more = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
	tests := []struct {
		name, method, answer string
		closes               bool // the upstream closes behind the answer
		want                 string
	}{
		{"plain", "GET", ok + "Content-Length: 2\r\n\r\nok", false, `200 "ok"`},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\n\r\nok", true, `200 "ok"`},
		{"up to the end", "GET", ok + "\r\nok", true, `200 "ok"`},
		{"both framings", "GET", ok + "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false, `200 "ok"`},
		{"two lengths", "GET", ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!", true, invalid},
		{"length with sign", "GET", ok + "Content-Length: +2\r\n\r\nok", true, invalid},
		{"unknown coding", "GET", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true, invalid},
		{"chunks of HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true, `200 "2\r\nok\r\n0\r\n\r\n"`},
		{"more than its length", "GET", ok + "Content-Length: 2\r\n\r\nok" + more, false, `200 "ok"`},
		{"more than its chunks", "GET", chunked + "2\r\nok\r\n0\r\n\r\n" + more, false, `200 "ok"`},
		{"less than its length", "GET", ok + "Content-Length: 9\r\n\r\nok", true, `200 "ok" cut`},
		{"less than its chunk", "GET", chunked + "9\r\nok", true, `200 "ok" cut`},
		{"no last chunk", "GET", chunked + "2\r\nok\r\n", true, `200 "ok" cut`},
		{"no end of the trailer", "GET", chunked + "2\r\nok\r\n0\r\nX: 1", true, `200 "ok" cut`},
		{"garbled chunk", "GET", chunked + "2\r\nok\r\nzz\r\n", false, `200 "ok" cut`},
		{"chunk size beyond 64 bits", "GET", chunked + "2\r\nok\r\n10000000000000002\r\nok\r\n0\r\n\r\n", false, `200 "ok" cut`},
		{"HEAD with a body", "HEAD", ok + "Content-Length: 88\r\n\r\n" + more, false, `200 ""`},
		{"204 with a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\n" + more, false, `204 ""`},
		{"204 in chunks", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, `204 ""`},
		{"304 with a body", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n" + more, false, `304 ""`},
		{"205 with a body", "GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 2\r\n\r\nok", false, `205 "ok"`},
		{"informational", "GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nok", false, `103 "", 200 "ok"`},
		{"101 unasked", "GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", false, invalid},
		{"101 without Upgrade", "GET", "HTTP/1.1 101 Switching Protocols\r\n\r\n", false, invalid},
		{"status of two digits", "GET", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok", true, invalid},
		{"status 999", "GET", "HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok", false, `999 "ok"`},
		{"status 000", "GET", "HTTP/1.1 000 What\r\nContent-Length: 2\r\n\r\nok", false, invalid},
		{"field with bare CR", "GET", ok + "X: a\rb\r\nContent-Length: 2\r\n\r\nok", true, invalid},
		{"field with NUL", "GET", ok + "X: a\x00b\r\nContent-Length: 2\r\n\r\nok", true, invalid},
		{"field folded", "GET", ok + "X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", false, `200 "ok"`},
		{"space before colon", "GET", ok + "Content-Length : 2\r\n\r\nok", true, `200 "ok"`},
		{"HTTP/2.0", "GET", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", true, `200 "ok"`},
		{"HTTP/0.9", "GET", "ok", true, invalid},
		{"huge head", "GET", ok + "X: " + strings.Repeat("x", 20<<20) + "\r\n\r\n", true, invalid},
		{"nothing", "GET", "", true, invalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := start(t, answering(t, test.answer, test.closes), "")
			happened := answered(dial(t, n.web), test.method, "/")
			if happened != test.want {
				t.Errorf("got  %.200s, want %s", happened, test.want)
			}
			for range 5 {
				if next := answered(dial(t, n.web), "GET", "/next"); next != `200 "next"` {
					t.Errorf("the next client got %s", next)
				}
			}
		})
	}
}

// answering is an upstream that answers with these octets, whatever they are, and
// "next" to /next.
func answering(t *testing.T, answer string, closes bool) string {
	return serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if req.URL.Path == "/next" {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
				continue
			}
			io.WriteString(c, answer)
			if closes {
				return
			}
		}
	})
}

// Clients share connections to the upstream. What it sends beyond a response
// must not become the response of the next.
func TestWhatFollowsAResponseIsNobodys(t *testing.T) {
	const more = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"
	for _, test := range []struct{ method, answer, want string }{
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 88\r\n\r\n" + more, `200 ""`},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n" + more, `204 ""`},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + more, `200 "ok"`},
	} {
		n := start(t, answering(t, test.answer, false), "")
		const clients, requests = 32, 50
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				method, path, want := test.method, "/", test.want
				if i%2 == 0 {
					method, path, want = "GET", "/next", `200 "next"`
				}
				c := dial(t, n.web)
				for range requests {
					if got := answered(c, method, path); got != want {
						t.Errorf("%s %s beside %q: %s, want %s", method, path, test.answer, got, want)
						return
					}
				}
			})
		}
		all.Wait()
	}
}

// answered is what a client gets that asks for a path.
func answered(c *client, method, path string) string {
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: a.example\r\n\r\n", method, path)
	for seen := ""; ; {
		res, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			return seen + "cut"
		}
		body, err := io.ReadAll(res.Body)
		seen += fmt.Sprintf("%d %q", res.StatusCode, body)
		if err != nil {
			return seen + " cut"
		}
		if res.StatusCode >= 200 || res.StatusCode == 101 {
			return seen
		}
		seen += ", "
	}
}
