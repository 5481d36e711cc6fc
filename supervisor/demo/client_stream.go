package demo

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// webSocket echoes messages for as long as the attempt says, then closes.
func (c *client) webSocket(a *attempt) error {
	h, err := c.dialHTTP(a, c.takesTLS(a))
	if err != nil {
		return err
	}
	defer h.Close()

	nonce := make([]byte, 16)
	rand.Read(nonce)
	key := base64.StdEncoding.EncodeToString(nonce)
	err = h.send("GET", "/ws", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: "+key)
	if err != nil {
		return err
	}
	resp, err := h.answer("GET", http.StatusSwitchingProtocols)
	if err != nil {
		return err
	}
	if got := resp.Header.Get("Sec-WebSocket-Accept"); got != acceptKey(key) {
		return fmt.Errorf("handshake: accept key %q, not %q", got, acceptKey(key))
	}
	a.waited(a.Start)

	for i := uint32(0); time.Since(a.Start) < a.long; i++ {
		message := frame{opBinary, patternBytes(a.seed+i, 200)}
		sent := time.Now()
		if err := writeFrame(h, message, true); err != nil {
			return h.whyClosed(fmt.Errorf("send message %d: %w", i, err))
		}
		got, err := readFrame(h.r)
		switch {
		case err != nil:
			return fmt.Errorf("echo %d: %w", i, noEOF(err))
		case got.op == opClose:
			return closedBy(got)
		case got.op != message.op || !bytes.Equal(got.payload, message.payload):
			return fmt.Errorf("echo %d is not what was sent", i)
		}
		a.waited(sent)
		time.Sleep(slowTick)
	}

	// Both ends agree that it is over (RFC 6455, 7.1.2). If the server's own
	// close frame crosses ours nothing is lost: every message has been answered.
	if err := writeFrame(h, closeFrame(closeNormal), true); err != nil {
		return h.whyClosed(fmt.Errorf("send close frame: %w", err))
	}
	got, err := readFrame(h.r)
	if err != nil {
		return fmt.Errorf("close frame: %w", noEOF(err))
	}
	if got.op != opClose {
		return fmt.Errorf("frame of type %d instead of a close frame", got.op)
	}
	c.answered(h.secure)
	return nil
}

// whyClosed prefers, over an error of writing, the close frame that the server
// may have sent before it closed.
func (h *httpConn) whyClosed(err error) error {
	if f, e := readFrame(h.r); e == nil && f.op == opClose {
		return closedBy(f)
	}
	return err
}

func closedBy(f frame) error {
	if f.closeCode() == closeGoingAway {
		return ErrCut
	}
	return fmt.Errorf("closed by the server with code %d", f.closeCode())
}

// tcp echoes for as long as the attempt says, then sends a last piece larger
// than what is usually in flight, closes its half and wants all of it back.
func (c *client) tcp(a *attempt) error {
	conn, err := c.dial(a, c.raw)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := uint32(0); time.Since(a.Start) < a.long; i++ {
		if err := echo(a, conn, patternBytes(a.seed+i, 300)); err != nil {
			return fmt.Errorf("echo %d: %w", i, err)
		}
		time.Sleep(slowTick)
	}
	return lastEcho(a, conn, 64<<10)
}

// tcpNew is a connection for one short echo; a slow one is silent in between.
func (c *client) tcpNew(a *attempt) error {
	conn, err := c.dial(a, c.raw)
	if err != nil {
		return err
	}
	defer conn.Close()
	if a.slow {
		if err := echo(a, conn, patternBytes(a.seed+1, 64)); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		time.Sleep(a.long)
	}
	return lastEcho(a, conn, 64)
}

func echo(a *attempt, conn net.Conn, message []byte) error {
	sent := time.Now()
	if _, err := conn.Write(message); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(conn, got); err != nil {
		return noEOF(err)
	}
	if !bytes.Equal(got, message) {
		return errors.New("not what was sent")
	}
	a.waited(sent)
	return nil
}

// lastEcho sends the attempt's last bytes and a half close, and expects them
// back with nothing after them but the other half's close.
func lastEcho(a *attempt, conn net.Conn, size int) error {
	sent := time.Now()
	if _, err := io.Copy(conn, &pattern{seed: a.seed, size: size}); err != nil {
		return fmt.Errorf("send the last bytes: %w", err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return fmt.Errorf("half close: %w", err)
	}
	if err := expect(conn, &pattern{seed: a.seed, size: size}); err != nil {
		return err
	}
	a.waited(sent)
	return nil
}

// noEOF makes an end that was not agreed an error of that name.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
