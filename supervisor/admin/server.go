// Package admin is how operators and commands reach a running supervisor or balancer: HTTP
// on a Unix socket for root, and, where configured, metrics and health on TCP.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/balancer"
	"github.com/baton-mesh/baton/supervisor/trace"
)

// Server answers for a supervisor, a balancer or both.
type Server struct {
	supervisor *supervisor.Supervisor // nil: none
	balancer   *balancer.Balancer     // nil: none
	log        *slog.Logger
	servers    []*http.Server
	watch      sync.WaitGroup
	stopWatch  context.CancelFunc
}

// Listen opens the socket for those of the two that are there, and the address unless it is empty, and serves until
// Close. The socket's file is for its owner alone: who can write to it can run
// any binary.
func Listen(s *supervisor.Supervisor, b *balancer.Balancer, socket, address string, log *slog.Logger) (*Server, error) {
	srv := &Server{supervisor: s, balancer: b, log: log}
	watching, stop := context.WithCancel(context.Background())
	srv.stopWatch = stop
	if c, err := net.Dial("unix", socket); err == nil {
		c.Close()
		return nil, fmt.Errorf("another supervisor answers on admin.socket %s", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	unix, err := listenAt(socket)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	commands := srv.serve(unix, srv.commands())
	srv.watch.Go(func() { srv.restore(watching, commands, unix, socket) })
	if address != "" {
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			srv.Close()
			return nil, fmt.Errorf("admin.address: %w", err)
		}
		srv.serve(tcp, srv.public())
	}
	return srv, nil
}

// listenAt makes the socket, for its owner alone.
func listenAt(socket string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// restoreEvery is how often it is asked whether the socket's file is there.
const restoreEvery = time.Second

// restore makes the socket again where somebody has removed its file, until Close.
func (srv *Server) restore(ctx context.Context, server *http.Server, unix *net.UnixListener, socket string) {
	tick := time.NewTicker(restoreEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		again, err := listenAt(socket)
		if err != nil {
			continue // its directory is gone, too
		}
		srv.log.Warn("somebody has removed the admin socket's file: it is made again", "socket", socket)
		unix.SetUnlinkOnClose(false) // under its name there is another
		unix.Close()
		unix = again
		go srv.accept(server, again)
	}
}

func (srv *Server) serve(l net.Listener, h http.Handler) *http.Server {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	srv.servers = append(srv.servers, server)
	go srv.accept(server, l)
	return server
}

func (srv *Server) accept(server *http.Server, l net.Listener) {
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		srv.log.Error("admin server", "address", l.Addr().String(), "error", err)
	}
}

// Close ends all connections and removes the socket. Answers that are ready get
// a second to leave.
func (srv *Server) Close() error {
	srv.stopWatch()
	srv.watch.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var errs []error
	for _, s := range srv.servers {
		if s.Shutdown(ctx) != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// public is what anybody who reaches the address may ask.
func (srv *Server) public() *http.ServeMux {
	mux := http.NewServeMux()
	registry := prometheus.NewRegistry()
	if srv.supervisor != nil {
		registry.MustRegister(collector{srv.supervisor})
	}
	if srv.balancer != nil {
		registry.MustRegister(balancerCollector{srv.balancer})
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if srv.supervisor != nil && !srv.supervisor.Ready() {
			http.Error(w, srv.supervisor.Status().State, http.StatusServiceUnavailable)
			return
		}
		if srv.balancer != nil && !srv.balancer.Ready() {
			http.Error(w, "the balancer is not on every interface", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// commands is public and what changes things.
func (srv *Server) commands() *http.ServeMux {
	mux := srv.public()
	if srv.supervisor != nil {
		srv.supervisorCommands(mux)
	}
	if srv.balancer != nil {
		srv.balancerCommands(mux)
	}
	return mux
}

func (srv *Server) supervisorCommands(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, srv.supervisor.Status(), nil)
	})
	mux.HandleFunc("GET /v1/releases", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, srv.supervisor.Results(), nil)
	})
	mux.HandleFunc("GET /v1/releases/{id}/trace", srv.trace)
	mux.HandleFunc("POST /v1/release", func(w http.ResponseWriter, r *http.Request) {
		var req supervisor.Request
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			http.Error(w, fmt.Sprintf("request: %v", err), http.StatusBadRequest)
			return
		}
		result, err := srv.supervisor.Release(r.Context(), "command", req)
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/rollback", func(w http.ResponseWriter, r *http.Request) {
		result, err := srv.supervisor.Rollback(r.Context())
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/pause", func(w http.ResponseWriter, _ *http.Request) {
		result, err := srv.supervisor.Pause()
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/resume", func(w http.ResponseWriter, _ *http.Request) {
		result, err := srv.supervisor.Resume()
		answer(w, result, err)
	})
	mux.HandleFunc("POST /v1/generations/{id}/drain", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		var deadline time.Duration
		if err == nil {
			deadline, err = time.ParseDuration(r.URL.Query().Get("deadline"))
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("request: %v", err), http.StatusBadRequest)
			return
		}
		result, err := srv.supervisor.Drain(id, deadline)
		answer(w, result, err)
	})
}

func answer(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, supervisor.ErrRefused), errors.Is(err, balancer.ErrRefused):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// trace answers with the spans of a release as OTLP/JSON.
func (srv *Server) trace(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("%q is no release's number", r.PathValue("id")), http.StatusBadRequest)
		return
	}
	spans, err := srv.supervisor.Trace(id)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	text, err := trace.JSON(spans)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(text)
}
