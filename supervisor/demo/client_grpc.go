package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// gRPC over HTTP/2, as far as an echo needs it: messages behind a length, the
// status as a trailer. The tests use grpc-go.

const (
	grpcUnary  = "/demo.Echo/Unary"
	grpcStream = "/demo.Echo/Stream"
	// grpcDelay is the request field that has the origin answer later, in milliseconds.
	grpcDelay = "X-Delay-Ms"

	maxMessage = 1 << 20
)

// grpcMessage is a message with what goes before it: not compressed, its length.
func grpcMessage(payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(payload))), payload...)
}

func readGRPCMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || size > maxMessage {
		return nil, fmt.Errorf("message head %x", head)
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(r, payload)
	return payload, noEOF(err)
}

// grpc calls a method on the client's shared connection.
func (c *client) grpc(ctx context.Context, a *attempt, path string, body func() io.Reader) (*http.Response, error) {
	secure := c.takesTLS(a)
	get := func() (*h2Conn, error) { return c.shared.of(secure).get(c, a, secure) }
	resp, err := roundTrip(ctx, get, func(h *h2Conn) *http.Request {
		req := h.request("POST", path, body())
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
		if path == grpcUnary {
			req.Header.Set(grpcDelay, strconv.FormatInt(a.long.Milliseconds(), 10))
		}
		return req
	})
	if err != nil {
		return nil, err
	}
	if err := wantStatus(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return nil, err
	}
	c.answered(secure)
	return resp, nil
}

// grpcEnd expects the end of the messages, and a status that is OK.
func grpcEnd(resp *http.Response) error {
	if _, err := readGRPCMessage(resp.Body); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the last message: %w", cutByGoAway(err))
	}
	if status := resp.Trailer.Get("Grpc-Status"); status != "0" {
		return fmt.Errorf("grpc-status %q %q", status, resp.Trailer.Get("Grpc-Message"))
	}
	return nil
}

// grpcCall is one request and its answer. A slow one waits at the origin.
func (c *client) grpcCall(a *attempt) error {
	ctx, cancel := context.WithTimeout(context.Background(), a.limit())
	defer cancel()
	message := patternBytes(a.seed, 700)
	resp, err := c.grpc(ctx, a, grpcUnary, func() io.Reader { return bytes.NewReader(grpcMessage(message)) })
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := readGRPCMessage(resp.Body)
	if err != nil {
		return fmt.Errorf("answer: %w", cutByGoAway(noEOF(err)))
	}
	if !bytes.Equal(got, message) {
		return errors.New("answer is not what was sent")
	}
	if a.long == 0 {
		a.waited(a.Start)
	}
	return grpcEnd(resp)
}

// unread is a body that stays open while nothing of it was read: net/http closes it with
// an attempt that has sent nothing, and roundTrip makes another.
type unread struct {
	*io.PipeReader
	read atomic.Bool
}

func (u *unread) Read(p []byte) (int, error) {
	u.read.Store(true)
	return u.PipeReader.Read(p)
}

func (u *unread) Close() error {
	if !u.read.Load() {
		return nil
	}
	return u.PipeReader.Close()
}

// grpcChat sends messages for as long as the attempt says and waits for each one's echo.
func (c *client) grpcChat(a *attempt) error {
	ctx, cancel := context.WithTimeout(context.Background(), a.limit())
	defer cancel()
	r, w := io.Pipe()
	defer r.Close()
	body := &unread{PipeReader: r}
	type result struct {
		resp *http.Response
		err  error
	}
	answered := make(chan result, 1)
	go func() {
		resp, err := c.grpc(ctx, a, grpcStream, func() io.Reader { return body })
		if err != nil {
			r.CloseWithError(err) // ends the writer's wait
		}
		answered <- result{resp, err}
	}()
	// The response's head comes with the first echo.
	send := func(i uint32) error {
		if _, err := w.Write(grpcMessage(patternBytes(a.seed+i, 200))); err != nil {
			return fmt.Errorf("send message %d: %w", i, cutByGoAway(err))
		}
		return nil
	}
	sent := time.Now()
	sendErr := send(0)
	answer := <-answered
	if answer.err != nil {
		return answer.err // the cause, where both have failed
	}
	defer answer.resp.Body.Close()
	if sendErr != nil {
		return sendErr
	}
	for i := uint32(0); ; i++ {
		got, err := readGRPCMessage(answer.resp.Body)
		if err != nil {
			return fmt.Errorf("echo %d: %w", i, cutByGoAway(noEOF(err)))
		}
		if !bytes.Equal(got, patternBytes(a.seed+i, 200)) {
			return fmt.Errorf("echo %d is not what was sent", i)
		}
		a.waited(sent)
		if time.Since(a.Start) >= a.long {
			break
		}
		time.Sleep(slowTick)
		sent = time.Now()
		if err := send(i + 1); err != nil {
			if _, cause := readGRPCMessage(answer.resp.Body); cause != nil {
				err = fmt.Errorf("%w: %w", err, cutByGoAway(cause))
			}
			return err
		}
	}
	w.Close()
	return grpcEnd(answer.resp)
}
