package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/listener"
)

// echoService answers each message with itself, and ends with a status that is
// told in a trailer.
var echoService = grpc.ServiceDesc{
	ServiceName: "test.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Unary",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			deadline, _ := ctx.Deadline()
			grpc.SetTrailer(ctx, metadata.Pairs("left", time.Until(deadline).Truncate(time.Minute).String()))
			if in.Value == "wrong" {
				return nil, status.Error(codes.FailedPrecondition, "wrong: 100% ü")
			}
			return in, nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Bidi", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			for {
				in := new(wrapperspb.StringValue)
				if err := stream.RecvMsg(in); errors.Is(err, io.EOF) {
					stream.SetTrailer(metadata.Pairs("said", "good bye"))
					return nil
				} else if err != nil {
					return err
				}
				if err := stream.SendMsg(in); err != nil {
					return err
				}
			}
		},
	}},
}

// grpcOrigin runs grpc-go's server behind the proxy.
func grpcOrigin(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	server := grpc.NewServer()
	server.RegisterService(&echoService, nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return ln.Addr().String()
}

// h2cUpstream is what a gRPC server is reached by.
func h2cUpstream(c *config.Config) { c.Upstreams[0].Protocol = config.H2C }

// grpcClient is grpc-go's client, of whichever node is current when it connects.
func (f flavour) grpcClient(t *testing.T, current *atomic.Pointer[node]) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if f.scheme == "https" {
		creds = credentials.NewTLS(clientTLS())
	}
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", grpc.WithTransportCredentials(creds),
		grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", current.Load().web)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func unary(ctx context.Context, conn *grpc.ClientConn, text string, opts ...grpc.CallOption) (string, error) {
	out := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, "/test.Echo/Unary", wrapperspb.String(text), out, opts...)
	return out.Value, err
}

func bidi(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &echoService.Streams[0], "/test.Echo/Bidi")
}

// exchange sends a message and waits for its echo.
func exchange(stream grpc.ClientStream, text string) error {
	if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
		return err
	}
	in := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(in); err != nil {
		return err
	}
	if in.Value != text {
		return fmt.Errorf("echo of %q is %q", text, in.Value)
	}
	return nil
}

// ends closes the client's side and waits for the server's.
func ends(stream grpc.ClientStream) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("at the end: %v", err)
	}
	if said := stream.Trailer()["said"]; len(said) != 1 || said[0] != "good bye" {
		return fmt.Errorf("trailer %q", stream.Trailer())
	}
	return nil
}

func TestGRPCPassesThrough(t *testing.T) {
	address := grpcOrigin(t)
	eachFlavour(t, func(t *testing.T, f flavour) {
		n := start(t, address, "", append(f.config, h2cUpstream)...)
		conn := f.grpcClient(t, on(n))
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Minute)
		defer cancel()
		var trailer metadata.MD
		if got, err := unary(ctx, conn, strings.Repeat("x", 100_000), grpc.Trailer(&trailer)); err != nil || len(got) != 100_000 {
			t.Fatalf("%d octets, %v", len(got), err)
		}
		// The deadline travels as grpc-timeout.
		if left := trailer["left"]; len(left) != 1 || left[0] != "1h29m0s" {
			t.Errorf("time left at the server: %q", left)
		}
		_, err := unary(ctx, conn, "wrong")
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "wrong: 100% ü" {
			t.Errorf("status %v", err)
		}
		stream, err := bidi(ctx, conn)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if err := exchange(stream, fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := ends(stream); err != nil {
			t.Error(err)
		}
	})
}

func TestGRPCSeesNoFailureOverGenerations(t *testing.T) {
	address := grpcOrigin(t)
	eachFlavour(t, func(t *testing.T, f flavour) {
		change := append(f.config, h2cUpstream)
		current := on(start(t, address, "", change...))
		const callers, generations = 4, 6
		var served atomic.Int64
		var calls sync.WaitGroup
		stop := make(chan struct{})
		for range callers {
			conn := f.grpcClient(t, current)
			call := func(f func(i int) error) {
				calls.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						if err := f(i); err != nil {
							t.Error(err)
							return
						}
						served.Add(1)
					}
				})
			}
			call(func(i int) error {
				_, err := unary(t.Context(), conn, fmt.Sprint(i))
				return err
			})
			call(func(int) error {
				stream, err := bidi(t.Context(), conn)
				if err != nil {
					return err
				}
				for i := range 20 {
					if err := exchange(stream, fmt.Sprint(i)); err != nil {
						return err
					}
				}
				return ends(stream)
			})
		}
		for range generations {
			before := served.Load()
			eventually(t, "calls flow", func() bool { return served.Load() > before+20*callers || t.Failed() })
			old := current.Swap(start(t, address, "", change...))
			old.stop()
			old.drained(nothing)
		}
		close(stop)
		calls.Wait()
	})
}

func TestLongGRPCStreamStaysUntilTheLastCall(t *testing.T) {
	f := flavours[0]
	n := start(t, grpcOrigin(t), "", https, h2cUpstream, func(c *config.Config) { c.Release.DrainTimeout = 10 * time.Second })
	conn := f.grpcClient(t, on(n))
	stream, err := bidi(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(stream, "before"); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if err := exchange(stream, "during"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one request", func() bool { return n.Counts() == listener.Counts{listener.Active: 1} })
	n.lastCall()
	// Unavailable is what a gRPC client may try again elsewhere.
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Unavailable {
		t.Errorf("cut: %v", err)
	}
	n.drained(listener.Tally{Cut: 1})
}

func TestGRPCClientsAreToldInTheirWay(t *testing.T) {
	ln := listen(t)
	ln.Close() // nobody listens there
	f := flavours[1]
	n := start(t, ln.Addr().String(), "", h2cUpstream, func(c *config.Config) {
		c.Routes[0].Match.PathPrefix = "/test.Echo/"
	})
	conn := f.grpcClient(t, on(n))
	if _, err := unary(t.Context(), conn, "x"); status.Code(err) != codes.Unavailable ||
		!strings.Contains(err.Error(), "no endpoint of the upstream could be reached") {
		t.Errorf("upstream down: %v", err)
	}
	err := conn.Invoke(t.Context(), "/test.Other/Unary", wrapperspb.String(""), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("no route: %v", err)
	}
}
