package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

const upgradeRequest = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// frame builds a frame as a server sends it, or with a mask as a client does.
func frame(opcode byte, masked bool, payload []byte) []byte {
	b := []byte{0x80 | opcode, 0}
	switch n := len(payload); {
	case n < 126:
		b[1] = byte(n)
	case n < 1<<16:
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b[1] = 127
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if masked {
		b[1] |= 0x80
		b = append(b, 0, 0, 0, 0) // a mask of zeros changes nothing
	}
	return append(b, payload...)
}

// readFrame reads a frame without a mask.
func readFrame(r io.Reader) (opcode byte, payload []byte, err error) {
	head := make([]byte, 2, 10)
	if _, err = io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	n := uint64(head[1])
	if extra := map[byte]int{126: 2, 127: 8}[head[1]]; extra > 0 {
		length := make([]byte, 8)
		if _, err = io.ReadFull(r, length[8-extra:]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(length)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return head[0] & 0x0f, payload, err
}

// webSocketOrigin accepts the upgrade and runs f on the connection.
func webSocketOrigin(t *testing.T, f func(net.Conn, io.Reader)) string {
	return serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		f(c, r)
	})
}

func upgrade(t *testing.T, n *node, more string) *client {
	t.Helper()
	c := dial(t, n.web)
	c.send(upgradeRequest + more)
	res, err := http.ReadResponse(c.r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", res, err)
	}
	return c
}

func quick(c *config.Config) { c.Release.DrainTimeout = time.Second } // a window of 100 ms

func TestWebSocketStaysThroughTheDrainAndIsToldBetweenFrames(t *testing.T) {
	// The server streams frames of every length without a pause.
	sizes := []int{0, 1, 125, 126, 1000, 65535, 65536, 300_000}
	n := start(t, webSocketOrigin(t, func(c net.Conn, _ io.Reader) {
		for i := 0; ; i++ {
			payload := bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)])
			if _, err := c.Write(frame(2, false, payload)); err != nil {
				return
			}
		}
	}), "")
	c := upgrade(t, n, "")
	for i := range 3 * len(sizes) {
		if op, payload, err := readFrame(c.r); err != nil || op != 2 || len(payload) != sizes[i%len(sizes)] {
			t.Fatalf("frame %d: opcode %d, %d octets, %v", i, op, len(payload), err)
		}
	}
	n.stop()
	if got := n.Counts(); got[listener.WebSocket] != 1 {
		t.Fatalf("left: %s", got)
	}
	n.lastCall()
	for i := 3 * len(sizes); ; i++ {
		op, payload, err := readFrame(c.r)
		if err != nil {
			t.Fatalf("frame %d: %v; want a close frame first", i, err)
		}
		if op == 8 {
			if status := binary.BigEndian.Uint16(payload); status != 1001 {
				t.Errorf("close status %d", status)
			}
			break
		}
		want := bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)])
		if op != 2 || !bytes.Equal(payload, want) {
			t.Fatalf("frame %d was broken: opcode %d, %d octets", i, op, len(payload))
		}
	}
	c.send(string(frame(8, true, []byte{0x03, 0xe9})))
	c.ended() // nothing follows the close frame
	n.drained(listener.Tally{Cut: 1})
}

func TestQuietWebSocketIsToldAndItsAnswerEndsIt(t *testing.T) {
	n := start(t, webSocketOrigin(t, func(c net.Conn, r io.Reader) { io.Copy(c, r) }), "", quick)
	c := upgrade(t, n, "")
	n.stop()
	n.lastCall()
	op, payload, err := readFrame(c.r)
	if err != nil || op != 8 || !bytes.Equal(payload, []byte{0x03, 0xe9}) {
		t.Fatalf("opcode %d, payload %x, %v", op, payload, err)
	}
	told := time.Now()
	c.send(string(frame(8, true, payload)))
	n.drained(listener.Tally{Cut: 1})
	if took := time.Since(told); took > 900*time.Millisecond {
		t.Errorf("the answer was waited for as if it had not come: %v", took)
	}
}

func TestWebSocketThatDoesNotAnswerIsClosed(t *testing.T) {
	n := start(t, webSocketOrigin(t, func(c net.Conn, r io.Reader) { io.Copy(io.Discard, r) }), "", quick)
	upgrade(t, n, "")
	n.stop()
	n.lastCall()
	n.drained(listener.Tally{Cut: 1})
}

func TestWhatFollowsTheUpgradeRequestReachesTheServer(t *testing.T) {
	n := start(t, webSocketOrigin(t, func(c net.Conn, r io.Reader) {
		head := make([]byte, 7) // a masked frame with one octet
		io.ReadFull(r, head)
		c.Write(frame(1, false, head[6:]))
	}), "")
	c := upgrade(t, n, string(frame(1, true, []byte("x"))))
	if op, payload, err := readFrame(c.r); err != nil || op != 1 || string(payload) != "x" {
		t.Errorf("opcode %d, %q, %v", op, payload, err)
	}
}

// Frames pass octet by octet as they are, also those that break the protocol:
// that is between the two ends. So is the extension they agree on.
func TestFramesPassAsTheyAre(t *testing.T) {
	var frames []byte
	add := func(head byte, payload []byte) {
		f := frame(0, true, payload)
		f[0] = head
		frames = append(frames, f...)
	}
	for _, n := range []int{0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20} {
		add(0x82, bytes.Repeat([]byte{0xfe}, n))
	}
	for head := range 256 {
		add(byte(head), []byte{0x03, 0xe8, 0xff}) // each bit, each opcode; no UTF-8
	}
	for status := range 5001 { // of a close
		add(0x88, binary.BigEndian.AppendUint16(nil, uint16(status)))
	}
	add(0x01, []byte("frag"))
	add(0x89, []byte("ping"))
	add(0x80, []byte("ment"))
	const extension = "permessage-deflate; client_max_window_bits"
	n := start(t, serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Extensions: "+req.Header.Get("Sec-WebSocket-Extensions")+"\r\n\r\n")
		io.Copy(c, r)
	}), "")
	c := dial(t, n.web)
	c.send(strings.Replace(upgradeRequest, "\r\n\r\n", "\r\nSec-WebSocket-Extensions: "+extension+"\r\n\r\n", 1))
	res, err := http.ReadResponse(c.r, nil)
	if err != nil || res.Header.Get("Sec-WebSocket-Extensions") != extension {
		t.Fatalf("%v, %v", res, err)
	}
	go func() {
		for rest := frames; len(rest) > 0; {
			n, err := c.Write(rest[:min(len(rest), 1+len(rest)%4099)])
			if err != nil {
				return
			}
			rest = rest[n:]
		}
		c.CloseWrite()
	}()
	got := make([]byte, len(frames))
	if _, err := io.ReadFull(c.r, got); err != nil || !bytes.Equal(got, frames) {
		t.Errorf("the frames came back changed; %v", err)
	}
}

func TestOtherUpgradesStayUntilTheLastCall(t *testing.T) {
	n := start(t, serveTCP(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, r)
	}), "", quick)
	c := dial(t, n.web)
	c.send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if res, err := http.ReadResponse(c.r, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	n.stop()
	c.send("still here")
	if got, err := c.r.Peek(10); string(got) != "still here" {
		t.Fatalf("%q, %v", got, err)
	}
	if got := n.Counts(); got[listener.Upgraded] != 1 {
		t.Fatalf("left: %s", got)
	}
	n.lastCall()
	n.drained(listener.Tally{Cut: 1})
}

func TestWebSocketOverTLS(t *testing.T) {
	n := start(t, webSocketOrigin(t, func(c net.Conn, r io.Reader) { io.Copy(c, r) }), "", https, quick)
	raw := dial(t, n.web)
	config := clientTLS()
	config.ServerName = "a.example"
	conn := tls.Client(raw, config)
	c := bufio.NewReader(conn)
	io.WriteString(conn, upgradeRequest)
	if res, err := http.ReadResponse(c, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", res, err)
	}
	for _, size := range []int{1, 1000, 70_000} {
		conn.Write(frame(2, false, make([]byte, size)))
		if op, payload, err := readFrame(c); err != nil || op != 2 || len(payload) != size {
			t.Fatalf("opcode %d, %d octets, %v; want %d", op, len(payload), err, size)
		}
	}
	n.stop()
	n.lastCall()
	if op, payload, err := readFrame(c); err != nil || op != 8 || !bytes.Equal(payload, []byte{0x03, 0xe9}) {
		t.Errorf("opcode %d, %x, %v; want a close frame with 1001", op, payload, err)
	}
	conn.Write(frame(8, true, []byte{0x03, 0xe9}))
	if _, err := c.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("%v; want the end of TLS", err)
	}
	n.drained(listener.Tally{Cut: 1})
}
