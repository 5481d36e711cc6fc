package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// What two readers could read two ways is refused, or forwarded in the one way
// that is left.
func TestAmbiguousRequests(t *testing.T) {
	o := newStrictOrigin(t)
	n := start(t, o.address, "")
	for _, test := range ambiguousRequests() {
		t.Run(test.name, func(t *testing.T) {
			happened := statuses(t, n.web, test.request)
			got, refused := o.taken()
			if n := len(got); n > 0 && got[n-1].target == "/last" {
				happened, got = strings.TrimSuffix(happened, " 200"), got[:n-1]
			} else {
				happened += " closed"
			}
			for _, r := range got {
				happened += " " + r.String()
			}
			happened = strings.TrimPrefix(happened, "200 ")
			if happened != test.want {
				t.Errorf("got  %s\nwant %s", happened, test.want)
			}
			for _, why := range refused {
				t.Errorf("forwarded what is not clear: %s", why)
			}
		})
	}
}

// statuses sends a request, and behind it one that ends the connection. It
// returns the statuses of the answers.
func statuses(t *testing.T, address, request string) string {
	c := dial(t, address)
	c.send(request + "GET /last HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
	method, _, _ := strings.Cut(request, " ")
	var all []string
	for {
		res, err := http.ReadResponse(c.r, &http.Request{Method: method})
		if err != nil {
			return strings.Join(all, " ")
		}
		io.Copy(io.Discard, res.Body)
		all = append(all, strconv.Itoa(res.StatusCode))
		if res.StatusCode >= 200 {
			method = "GET"
		}
	}
}

// What a head says of its body is known of every request that came alone, and
// of the first.
func TestFramingOnAKeptConnection(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: a.example\r\n"
	chunked := []string{head, "Transfer-Encoding: chunked\r\n\r\n2\r\n", "ab\r\n0\r\n", "\r\n"}
	counted := []string{head + "Content-Length: 4\r\n", "\r\nab", "cd"}
	var octets []string
	for _, octet := range head + "Content-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" {
		octets = append(octets, string(octet))
	}
	requests := []struct {
		name   string
		parts  []string
		status int
	}{
		{"chunks", chunked, 200},
		{"chunks again", chunked, 200},
		{"length", counted, 200},
		{"chunks after length", chunked, 200},
		{"neither", []string{"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"}, 200},
		{"both, octet by octet", octets, 400},
	}
	o := newStrictOrigin(t)
	c := dial(t, start(t, o.address, "").web)
	c.SetNoDelay(true)
	for _, request := range requests {
		for _, part := range request.parts {
			c.send(part)
		}
		if res, _ := c.response(); res.StatusCode != request.status || res.Close != (request.status == 400) {
			t.Fatalf("%s: %s, close %t", request.name, res.Status, res.Close)
		}
	}
	c.ended()
}

// Clients of HTTP/1.0 would take it for the response (RFC 9110, 15.2).
func TestOldClientsGetNoInformationalResponses(t *testing.T) {
	n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, r.Header.Get("Expect"), r.Header.Get("Upgrade"))
	}), "")
	c := dial(t, n.web)
	c.send("POST / HTTP/1.0\r\nHost: a.example\r\nExpect: 100-continue\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nab")
	if res, body := c.response(); res.StatusCode != http.StatusOK || body != "" {
		t.Errorf("%s, the upstream has got %q", res.Status, body)
	}
	c.ended()
}

// FuzzRequests sends anything, and looks at what of it is forwarded.
func FuzzRequests(f *testing.F) {
	for _, test := range ambiguousRequests() {
		f.Add([]byte(test.request))
	}
	o := newStrictOrigin(f)
	n := start(f, o.address, "")
	f.Fuzz(func(t *testing.T, request []byte) {
		c := dial(t, n.web)
		c.Write(request) // it may be answered, and the connection closed, before all is out
		c.CloseWrite()
		io.Copy(io.Discard, c.r)
		_, refused := o.taken()
		for _, why := range refused {
			t.Errorf("forwarded what is not clear: %s", why)
		}
	})
}
