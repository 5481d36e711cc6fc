package demo

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Server serves connections of HTTP/2 frame by frame: on gets the stream of
// each request when it has been sent, and says whether to go on.
func h2Server(t *testing.T, on func(f *http2.Framer, stream uint32) bool) string {
	return server(t, func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		f := http2.NewFramer(c, c)
		f.WriteSettings()
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			h := frame.Header()
			ends := h.Flags.Has(http2.FlagHeadersEndStream) && (h.Type == http2.FrameHeaders || h.Type == http2.FrameData)
			if ends && !on(f, h.StreamID) {
				// A reset, for what it has not read, could take its last frames away.
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c)
				return
			}
		}
	})
}

// Ways to end a connection under its streams, each of which must be told from the others.
func TestHTTP2ClientsTellTheEndsOfAConnection(t *testing.T) {
	for _, tt := range []struct {
		name string
		on   func(f *http2.Framer, stream uint32) bool
		cut  bool
		want string
	}{
		{"closed under a request", func(*http2.Framer, uint32) bool { return false }, false, "EOF"},
		{"announced, then closed under it", func(f *http2.Framer, stream uint32) bool {
			f.WriteGoAway(stream, http2.ErrCodeNo, nil)
			return false
		}, true, "server sent GOAWAY"},
		{"refused by GOAWAY", func(f *http2.Framer, stream uint32) bool {
			f.WriteGoAway(stream-1, http2.ErrCodeNo, nil)
			return true
		}, false, "GOAWAY"},
		{"reset", func(f *http2.Framer, stream uint32) bool {
			f.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
			return true
		}, false, "REFUSED_STREAM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := clientOf(h2Server(t, tt.on), "")
			defer c.close()
			op := once(c, H2C, false)
			if op.Err == nil || op.Cut() != tt.cut || op.Failed() == tt.cut || !strings.Contains(op.Err.Error(), tt.want) {
				t.Errorf("cut %t, %v; want %t, %s", op.Cut(), op.Err, tt.cut, tt.want)
			}
		})
	}
}

// answering serves clients of once, and ends each connection after two requests.
func answering(t *testing.T, end func(*http2.Framer)) *client {
	var head bytes.Buffer
	hpack.NewEncoder(&head).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	return clientOf(h2Server(t, func(f *http2.Framer, stream uint32) bool {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true})
		f.WriteData(stream, true, patternBytes(onceSeed, smallSize))
		if stream == 1 {
			return true
		}
		end(f)
		return false
	}), "")
}

func TestHTTP2ConnectionUntilTold(t *testing.T) {
	c := answering(t, func(f *http2.Framer) { f.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) })
	defer c.close()
	var flows []Flow
	for range 4 {
		op := once(c, H2C, false)
		if op.Err != nil {
			t.Fatal(op.Err)
		}
		flows = append(flows, op.Flow)
		waitClosed(c, len(flows)%2 == 0)
	}
	if flows[0] != flows[1] || flows[1] == flows[2] || flows[2] != flows[3] {
		t.Errorf("connections %v; want two, two requests on each", flows)
	}
}

func TestHTTP2IdleConnectionClosedWithoutNotice(t *testing.T) {
	c := answering(t, func(*http2.Framer) {})
	defer c.close()
	for range 2 {
		if op := once(c, H2C, false); op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	waitClosed(c, true)
	if op := once(c, H2C, false); !op.Failed() || !strings.Contains(op.Err.Error(), errNoGoAway.Error()) {
		t.Errorf("%v, want %v", op.Err, errNoGoAway)
	}
}

// waitClosed waits until the client knows that its connection takes no more.
func waitClosed(c *client, closed bool) {
	for closed && c.shared.clear.conn.Available() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// What the clients of gRPC, of events and of TLS notice besides.
func TestMoreThatClientsNotice(t *testing.T) {
	grpcAnswer := func(status string, messages int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			grpcHead(w)
			m, _ := readGRPCMessage(r.Body)
			for range messages {
				w.Write(grpcMessage(m))
			}
			w.Header().Set("Grpc-Status", status)
		}
	}
	eventsOf := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, text)
		}
	}
	for _, tt := range []struct {
		name string
		kind Kind
		serv http.HandlerFunc
		want string
	}{
		{"a status that is not OK", GRPC, grpcAnswer("14", 1), `grpc-status "14"`},
		{"a status that is missing", GRPC, grpcAnswer("", 1), `grpc-status ""`},
		{"no message", GRPC, grpcAnswer("0", 0), "EOF"},
		{"two messages", GRPC, grpcAnswer("0", 2), "after the last message"},
		{"a stream that ends early", GRPCStream, grpcAnswer("0", 1), "echo 1|send message"},
		{"events that end early", Events, eventsOf("data: 0 12347 1\n\n"), "ended after 1 of"},
		{"an event that is missing", Events, eventsOf("data: 1 12347 1\n\n"), "event 0 is"},
		{"events of somebody else", Events, eventsOf("data: 0 12346 1\n\n"), "event 0 is"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(tt.serv)
			s.Config.Protocols = new(http.Protocols)
			s.Config.Protocols.SetHTTP1(true)
			s.Config.Protocols.SetUnencryptedHTTP2(true)
			s.Start()
			defer s.Close()
			c := clientOf(s.Listener.Addr().String(), "")
			defer c.close()
			op := once(c, tt.kind, false)
			if !op.Failed() {
				t.Fatalf("not noticed: %v", op.Err)
			}
			for want := range strings.SplitSeq(tt.want, "|") {
				if strings.Contains(op.Err.Error(), want) {
					return
				}
			}
			t.Errorf("%v; want %s", op.Err, tt.want)
		})
	}
}

// Two servers with the same certificate that share no ticket keys: generations
// that forgot each other's sessions.
func TestSessionNotResumedIsNoticed(t *testing.T) {
	o := startOrigin(t)
	first, second := loadOn(t, o), loadOn(t, o)
	c := first.client()
	defer c.close()
	for i := range 2 {
		if op := once(c, HTTPSNew, false); op.Err != nil {
			t.Fatalf("request %d: %v", i, op.Err)
		}
	}
	c.tlsWeb, c.roots = second.HTTPS, second.Roots
	if op := once(c, HTTPSNew, false); !op.Failed() || op.Err.Error() != fmt.Sprint(errNotResumed) {
		t.Errorf("%v, want %v", op.Err, errNotResumed)
	}
}

// A stream whose connection was told to go before anything was sent goes to another
// one, with all that it has to say.
func TestStreamGoesToAnotherConnection(t *testing.T) {
	origin, err := StartOrigin("127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer origin.Close()
	c := clientOf(origin.HTTPAddress(), "")
	defer c.close()
	var conns []*h2Conn
	for range 2 {
		h, err := c.dialHTTP2(new(attempt), false)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		conns = append(conns, h)
	}
	conns[0].conn.told.Store(true)
	conns[0].Close()
	r, w := io.Pipe()
	defer r.Close()
	go func() {
		w.Write(grpcMessage([]byte("hello")))
		w.Close()
	}()
	body := &unread{PipeReader: r}
	resp, err := roundTrip(t.Context(), func() (*h2Conn, error) {
		h := conns[0]
		conns = conns[1:]
		return h, nil
	}, func(h *h2Conn) *http.Request {
		req := h.request("POST", grpcStream, body)
		req.Header.Set("Content-Type", "application/grpc")
		return req
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := readGRPCMessage(resp.Body); err != nil || string(got) != "hello" || len(conns) != 0 {
		t.Errorf("%q, %v; %d connections not used", got, err, len(conns))
	}
}
