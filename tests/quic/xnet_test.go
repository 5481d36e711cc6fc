package quic

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go/quicvarint"
	xquic "golang.org/x/net/quic"
)

// Of RFC 9114: the types of a stream and of frames that a client of a few lines
// cannot do without.
const (
	controlStream = 0x0
	frameData     = 0x0
	frameHeaders  = 0x1
	frameSettings = 0x4
)

// xnetClient speaks HTTP/3 over golang.org/x/net/quic, as far as one GET needs.
type xnetClient struct {
	endpoint *xquic.Endpoint
	conn     *xquic.Conn
}

func dialXNet(ctx context.Context, address string, secure *tls.Config) (_ *xnetClient, err error) {
	secure = secure.Clone()
	secure.NextProtos = []string{"h3"}
	secure.MinVersion = tls.VersionTLS13
	config := &xquic.Config{TLSConfig: secure, HandshakeTimeout: patience, MaxIdleTimeout: patience}
	c := &xnetClient{}
	if c.endpoint, err = xquic.Listen("udp", "127.0.0.1:0", config); err != nil {
		return nil, err
	}
	if c.conn, err = c.endpoint.Dial(ctx, "udp", address, config); err != nil {
		c.close()
		return nil, fmt.Errorf("dial: %w", err)
	}
	control, err := c.conn.NewSendOnlyStream(ctx)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("open the control stream: %w", err)
	}
	control.Write([]byte{controlStream, frameSettings, 0})
	control.Flush()
	return c, nil
}

// resumed reports whether the handshake went on with an earlier session.
func (c *xnetClient) resumed() bool { return c.conn.ConnectionState().DidResume }

func (c *xnetClient) close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if c.conn != nil {
		c.conn.Abort(nil)
	}
	c.endpoint.Close(ctx)
}

// get returns the body that a path has.
func (c *xnetClient) get(ctx context.Context, path string) (string, error) {
	s, err := c.conn.NewStream(ctx)
	if err != nil {
		return "", fmt.Errorf("open a stream: %w", err)
	}
	s.SetReadContext(ctx)
	s.SetWriteContext(ctx)
	var head bytes.Buffer
	fields := qpack.NewEncoder(&head)
	for _, f := range []qpack.HeaderField{
		{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":authority", Value: "demo.test"}, {Name: ":path", Value: path},
	} {
		fields.WriteField(f)
	}
	request := quicvarint.Append([]byte{frameHeaders}, uint64(head.Len()))
	s.Write(append(request, head.Bytes()...))
	s.CloseWrite()

	var status string
	var body strings.Builder
	for {
		kind, err := quicvarint.Read(s)
		if errors.Is(err, io.EOF) && status == "200" {
			return body.String(), nil
		}
		if err != nil {
			return "", fmt.Errorf("read, after status %q: %w", status, err)
		}
		size, err := quicvarint.Read(s)
		if err != nil {
			return "", err
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(s, frame); err != nil {
			return "", err
		}
		switch kind {
		case frameData:
			body.Write(frame)
		case frameHeaders:
			if status, err = statusIn(frame); err != nil {
				return "", err
			}
		}
	}
}

func statusIn(block []byte) (string, error) {
	for next := qpack.NewDecoder().Decode(block); ; {
		f, err := next()
		if err != nil {
			return "", fmt.Errorf("no status in the head: %w", err)
		}
		if f.Name == ":status" {
			return f.Value, nil
		}
	}
}
