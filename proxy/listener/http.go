package listener

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/proxy/ledger"
)

type connKey struct{}

// Connection is what a request came on.
type Connection interface {
	// Begin says that a request has arrived. It reports false if the connection
	// had been told to leave: then the request must not be served.
	Begin() bool
	// Flow is the connection's account in the ledger.
	Flow() *ledger.Flow
	// Cut reports whether a last call has ended the connection under its requests.
	Cut() bool
}

// WithConnection says which connection the requests of ctx come on.
func WithConnection(ctx context.Context, c Connection) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// FromContext is the connection that a request came on.
func FromContext(ctx context.Context) Connection {
	return ctx.Value(connKey{}).(Connection)
}

// maxFrame is the most octets of a frame of HTTP/2's: what each server must take
// (RFC 9113, 4.2), where net/http would keep buffers of a MiB.
const maxFrame = 16 << 10

// headSlack is what net/http reads beyond MaxHeaderBytes before it answers 431.
const headSlack = 4096

// NewHTTP serves HTTP/1.1 and HTTP/2 on sockets, over TLS if cfg says https:
// then with tickets under the shared keys, if there are any. The handler calls [Conn.Begin] first, and
// decides by the response's Connection field whether the connection stays.
func NewHTTP(cfg config.Listener, sockets []net.Listener, r *Registry, shared *keys.Reader, h http.Handler, log *slog.Logger) (*Server, error) {
	s, err := newServer(cfg, sockets, r, log)
	if err != nil {
		return nil, err
	}
	if cfg.Protocol == config.HTTPS {
		if s.secure, err = NewSecure(cfg.TLS, shared, "h2", "http/1.1"); err != nil {
			return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
		}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	// The server never sees the TLS, which is below our Conn; and so it takes
	// HTTP/2 from those who begin with its preface, here as there.
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           h,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxReadFrameSize: maxFrame},
		ReadHeaderTimeout: cfg.HeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		// The handler is for every request.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return WithConnection(ctx, conn.(*Conn))
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				conn.(*Conn).rest()
			}
		},
	}
	if limit := int(cfg.MaxHeaderBytes); limit > 0 {
		server.MaxHeaderBytes = max(limit-headSlack, 1)
	}
	s.serve = func(a *acceptor) { server.Serve(a) }
	return s, nil
}
