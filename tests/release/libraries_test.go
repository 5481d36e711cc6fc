package release

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/baton-mesh/baton/supervisor/demo"
)

// A library is somebody else's client that comes as a Go package. What it would
// try again is turned off, except what a server says it has not begun.
type library struct {
	name string
	// start prepares a client. run makes some requests and returns how many; it is
	// called again and again. end is called after the last.
	start func(t *testing.T, at site, n *demo.Node) (run func() (int, error), end func())
}

// forClient bounds what hangs. A slow answer is no failure.
const forClient = 2 * time.Minute

var libraries = []library{
	{"grpc-go unary", grpcGo(true, grpcCalls)},
	{"grpc-go bidi", grpcGo(false, grpcStream)},
	{"coder/websocket", coderWebSocket(false)},
	{"coder/websocket TLS", coderWebSocket(true)},
}

func (s site) connect(ctx context.Context, address string) (net.Conn, error) {
	if s.dial != nil {
		return s.dial(ctx, address)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// grpcGo keeps one connection, until it is told to go.
func grpcGo(secure bool, use func(context.Context, *grpc.ClientConn) (int, error)) func(*testing.T, site, *demo.Node) (func() (int, error), func()) {
	return func(t *testing.T, at site, n *demo.Node) (func() (int, error), func()) {
		creds, address := insecure.NewCredentials(), n.HTTP.String()
		if secure {
			creds, address = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}), n.HTTPS.String()
		}
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds), grpc.WithDisableRetry(),
			grpc.WithContextDialer(at.connect), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
		if err != nil {
			t.Fatal(err)
		}
		return func() (int, error) {
			ctx, cancel := context.WithTimeout(context.Background(), forClient)
			defer cancel()
			return use(ctx, conn)
		}, func() { conn.Close() }
	}
}

// raw passes messages as they are, for the origin does not look into them.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(b)
	return nil
}

func grpcCalls(ctx context.Context, conn *grpc.ClientConn) (n int, err error) {
	for ; n < 10; n++ {
		sent, got := bytes.Repeat([]byte{byte(n)}, 500), []byte(nil)
		if err := conn.Invoke(ctx, "/demo.Echo/Unary", &sent, &got); err != nil {
			return n, err
		}
		if !bytes.Equal(sent, got) {
			return n, errors.New("another answer than was sent")
		}
		time.Sleep(20 * time.Millisecond)
	}
	return n, nil
}

func grpcStream(ctx context.Context, conn *grpc.ClientConn) (n int, err error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/demo.Echo/Stream")
	if err != nil {
		return 0, err
	}
	for ; n < 40; n++ {
		sent, got := bytes.Repeat([]byte{byte(n)}, 500), []byte(nil)
		if err := stream.SendMsg(&sent); err != nil && !errors.Is(err, io.EOF) { // io.EOF: RecvMsg has the cause
			return n, err
		}
		if err := stream.RecvMsg(&got); err != nil {
			return n, err
		}
		if !bytes.Equal(sent, got) {
			return n, errors.New("another answer than was sent")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := stream.CloseSend(); err != nil {
		return n, err
	}
	if err := stream.RecvMsg(new([]byte)); !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("at the end: %w", err)
	}
	return n, nil
}

// coderWebSocket makes a connection for each run.
func coderWebSocket(secure bool) func(*testing.T, site, *demo.Node) (func() (int, error), func()) {
	return func(_ *testing.T, at site, n *demo.Node) (func() (int, error), func()) {
		url := "ws://" + n.HTTP.String() + "/ws"
		if secure {
			url = "wss://" + n.HTTPS.String() + "/ws"
		}
		transport := &http.Transport{
			DialContext:     func(ctx context.Context, _, address string) (net.Conn, error) { return at.connect(ctx, address) },
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}
		return func() (int, error) {
			ctx, cancel := context.WithTimeout(context.Background(), forClient)
			defer cancel()
			return echoes(ctx, url, &http.Client{Transport: transport})
		}, transport.CloseIdleConnections
	}
}

func echoes(ctx context.Context, url string, client *http.Client) (n int, err error) {
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		return 0, err
	}
	defer c.CloseNow()
	for ; n < 40; n++ {
		sent := bytes.Repeat([]byte{byte(n)}, 700)
		if err := c.Write(ctx, websocket.MessageBinary, sent); err != nil {
			return n, err
		}
		_, got, err := c.Read(ctx)
		if err != nil {
			return n, err
		}
		if !bytes.Equal(sent, got) {
			return n, errors.New("another message than was sent")
		}
		time.Sleep(50 * time.Millisecond)
	}
	return n, c.Close(websocket.StatusNormalClosure, "")
}
